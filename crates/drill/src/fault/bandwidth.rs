//! Bytes come slowly.

use super::stage::{Admits, Item, Out, Stage};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Passes `rate` kilobytes (of 1 000 bytes) a second, evenly; the sender is slowed down by it too.
/// A rate of 0 passes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// Kilobytes a second.
    pub rate: u64,
}

impl Bandwidth {
    pub(super) fn stage(self) -> impl Stage {
        Narrow {
            bytes_per_second: self.rate.saturating_mul(1_000),
            free: None,
        }
    }
}

struct Narrow {
    bytes_per_second: u64,
    /// When what was taken so far will have passed.
    free: Option<Instant>,
}

/// The time that is taken ahead: enough to keep the line busy, little enough for the sender to feel
/// it.
const AHEAD: Duration = Duration::from_millis(100);

/// Into how many pieces a second the bytes are cut.
const PIECES_PER_SECOND: u64 = 100;

impl Stage for Narrow {
    fn pass(&mut self, item: Item, at: Instant, out: &mut Out) {
        // What comes all the same (an answer made here, or what another fault had kept) waits in
        // the lane until this one is removed.
        if self.bytes_per_second == 0 {
            return out.push((at, item));
        }
        let mut free = self.free.map_or(at, |free| free.max(at));
        match item {
            Item::Bytes(mut bytes) => {
                let piece = usize::try_from(self.bytes_per_second / PIECES_PER_SECOND)
                    .unwrap_or(usize::MAX)
                    .max(1);
                while !bytes.is_empty() {
                    let next = bytes.split_to(piece.min(bytes.len()));
                    free +=
                        Duration::from_secs_f64(next.len() as f64 / self.bytes_per_second as f64);
                    out.push((free, Item::Bytes(next)));
                }
            }
            other => out.push((free, other)),
        }
        self.free = Some(free);
    }

    fn admits(&self, now: Instant) -> Admits {
        match self.free {
            _ if self.bytes_per_second == 0 => Admits::Nothing,
            Some(free) if free > now + AHEAD => Admits::From(free - AHEAD),
            _ => Admits::Now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::stage::testing::{bytes, joined, start};

    #[test]
    fn bytes_pass_at_the_rate_and_the_sender_waits() {
        let (mut stage, mut out, start) = (Bandwidth { rate: 100 }.stage(), Out::new(), start());
        let sent: Vec<u8> = (0..50_000_u32).map(|n| n as u8).collect();
        stage.pass(Item::Bytes(sent.clone().into()), start, &mut out);
        let took = out.last().unwrap().0 - start;
        assert!((499..=501).contains(&took.as_millis()), "{took:?}");
        let half = out
            .iter()
            .filter(|(due, _)| *due <= start + Duration::from_millis(250))
            .count();
        assert!(half.abs_diff(out.len() / 2) <= 1);
        assert_eq!(joined(&out), sent);
        assert_eq!(
            stage.admits(start),
            Admits::From(out.last().unwrap().0 - AHEAD)
        );
    }

    #[test]
    fn d1_a_rate_of_zero_passes_nothing_and_keeps_what_comes_all_the_same() {
        let (mut stage, mut out, start) = (Bandwidth { rate: 0 }.stage(), Out::new(), start());
        assert_eq!(stage.admits(start), Admits::Nothing);
        stage.pass(bytes("made here"), start, &mut out);
        stage.pass(Item::End, start, &mut out);
        assert_eq!(out, [(start, bytes("made here")), (start, Item::End)]);
        assert_eq!(stage.admits(start), Admits::Nothing);
    }
}
