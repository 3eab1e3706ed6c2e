//! Bytes change on their way.

use super::error::{FaultError, within};
use super::stage::{Item, Out, Stage, Touched};
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Changes one byte in a share of the pieces that pass (a piece is what one read from the socket
/// brought).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Corrupt {
    /// The share of pieces, 0 to 1. Default: 1, every piece.
    #[serde(default = "every")]
    pub share: f64,
}

fn every() -> f64 {
    1.0
}

impl Corrupt {
    pub(super) fn check(self) -> Result<(), FaultError> {
        within("share", self.share, 0.0, 1.0)
    }

    pub(super) fn stage(self, rng: Rng, touched: Touched) -> impl Stage {
        Corrupting {
            share: self.share,
            rng,
            touched,
        }
    }
}

struct Corrupting {
    share: f64,
    rng: Rng,
    touched: Touched,
}

impl Stage for Corrupting {
    fn pass(&mut self, mut item: Item, at: Instant, out: &mut Out) {
        if let Item::Bytes(bytes) = &mut item
            && self.rng.f64() < self.share
        {
            let mut changed = bytes.to_vec();
            let place = self.rng.usize(0..changed.len().max(1));
            if let Some(byte) = changed.get_mut(place) {
                *byte ^= self.rng.u8(1..);
                self.touched.once();
            }
            *bytes = changed.into();
        }
        out.push((at, item));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::stage::testing::{bytes, joined, start};

    #[test]
    fn exactly_one_byte_of_the_share_of_pieces_is_changed() {
        let (touched, start) = (Touched::default(), start());
        let mut stage = Corrupt { share: 0.25 }.stage(Rng::with_seed(3), touched.clone());
        let mut changed = 0;
        for _ in 0..4_000 {
            let mut out = Out::new();
            stage.pass(bytes("0123456789"), start, &mut out);
            let differing = joined(&out)
                .iter()
                .zip(b"0123456789")
                .filter(|(is, was)| is != was)
                .count();
            assert!(differing <= 1);
            changed += differing;
        }
        assert!((900..1_100).contains(&changed), "{changed}");
        assert_eq!(touched.count(), changed as u64);
    }

    #[test]
    fn d1_a_share_of_nothing_has_touched_nothing() {
        let touched = Touched::default();
        let mut stage = Corrupt { share: 0.0 }.stage(Rng::with_seed(3), touched.clone());
        stage.pass(bytes("0123456789"), start(), &mut Out::new());
        assert_eq!(touched.count(), 0);
    }
}
