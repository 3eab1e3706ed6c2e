//! Bytes come in small pieces.

use super::micros;
use super::stage::{Item, Out, Stage};
use fastrand::Rng;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Cuts what is sent into pieces of about `average_size` bytes, each written by itself, `delay`
/// apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slicer {
    /// Bytes of a piece, on average. Zero counts as one.
    pub average_size: usize,
    /// At most this many bytes more or less. Default: none.
    #[serde(default)]
    pub size_variation: usize,
    /// Between two pieces. Microseconds when written, unlike the others. Default: none.
    #[serde(with = "micros", default)]
    pub delay: Duration,
}

impl Slicer {
    pub(super) fn stage(self, rng: Rng) -> impl Stage {
        Slicing {
            slicer: self,
            rng,
            free: None,
        }
    }
}

struct Slicing {
    slicer: Slicer,
    rng: Rng,
    /// When the next piece may go.
    free: Option<Instant>,
}

impl Stage for Slicing {
    fn pass(&mut self, item: Item, at: Instant, out: &mut Out) {
        let Slicer {
            average_size: size,
            size_variation: variation,
            delay,
        } = self.slicer;
        let mut free = self.free.map_or(at, |free| free.max(at));
        match item {
            Item::Bytes(mut bytes) => {
                while !bytes.is_empty() {
                    let size = self
                        .rng
                        .usize(size.saturating_sub(variation)..=size.saturating_add(variation));
                    let piece = bytes.split_to(size.clamp(1, bytes.len()));
                    out.push((free, Item::Bytes(piece)));
                    free += delay;
                }
            }
            other => out.push((free, other)),
        }
        self.free = Some(free);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::stage::testing::{joined, start};

    proptest::proptest! {
        #[test]
        fn pieces_have_the_size_and_distance_and_lose_nothing(
            sent: Vec<u8>, size in 0_usize..40, variation in 0_usize..60, delay in 0_u64..100, seed: u64,
        ) {
            let slicer = Slicer { average_size: size, size_variation: variation, delay: Duration::from_micros(delay) };
            let (mut out, start) = (Out::new(), start());
            slicer.stage(Rng::with_seed(seed)).pass(Item::Bytes(sent.clone().into()), start, &mut out);
            assert_eq!(joined(&out), sent);
            for (n, (due, item)) in out.iter().enumerate() {
                assert_eq!(*due, start + slicer.delay * n as u32);
                let Item::Bytes(piece) = item else { panic!("{item:?}") };
                assert!(piece.len() <= (size + variation).max(1));
                assert!(piece.len() >= size.saturating_sub(variation).max(1) || n + 1 == out.len());
            }
        }
    }
}
