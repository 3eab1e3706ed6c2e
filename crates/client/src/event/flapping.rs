//! A connection that is lost and back again and again is one trouble, not hundreds: told loss by
//! loss, it pushes everything else out of history and log, and each moment by itself looks well. So
//! it is a state, judged here. Pure: events and the time go in, what changed comes out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::EventKind;

/// A connection that is replaced more often than this within [`WITHIN`] flaps.
const MORE_THAN: usize = 10;
/// The period over which reconnects are counted together.
const WITHIN: Duration = Duration::from_secs(600);
/// Flapping is over once no connection was lost for so long.
pub(crate) const STEADY_AFTER: Duration = Duration::from_secs(120);

/// An outage that lasts longer is no blip of a connection that flaps, and is told by itself.
const BLIP: Duration = Duration::from_secs(5);
/// The least time between two events about flapping that grows.
const RETELL: Duration = Duration::from_secs(1);

/// A connection that is lost and replaced again and again: more than ten times within ten minutes,
/// and not yet steady for two.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Flapping {
    /// The time at which the first of these connections was lost, in milliseconds since 1970.
    pub since_ms: u64,
    /// The number of times that a lost connection was replaced since.
    pub reconnects: u64,
    /// The time at which a connection was last lost, in milliseconds since 1970.
    pub last_ms: u64,
    /// The cause of that loss.
    pub cause: Arc<str>,
}

/// The meaning of an event for the flapping of its connection.
#[derive(Debug, PartialEq)]
pub(crate) enum FlapVerdict {
    /// The event is told by itself.
    Alone,
    /// The event is a part of what is told as flapping.
    Part,
    /// The connection flaps from this event on; what has happened to it since then is a part of
    /// that.
    Begins(Flapping),
    /// The connection has flapped once more: to be told to listeners, and to the log, if so.
    Grows {
        now: Flapping,
        tell: bool,
        log: bool,
    },
}

/// The flapping of one connection.
#[derive(Debug, Default)]
pub(crate) struct FlapDetector {
    /// The losses that were made good of late: when they happened, also as a date.
    lost: VecDeque<(Instant, u64)>,
    /// The loss that is not made good yet, with its date and its cause.
    open: Option<(Instant, u64, Arc<str>)>,
    flaps: Option<Flaps>,
}

#[derive(Debug)]
struct Flaps {
    state: Flapping,
    last: Instant,
    told: Instant,
    log_at: u64,
}

impl FlapDetector {
    /// Takes note of an event.
    pub(crate) fn note(&mut self, kind: &EventKind, now: Instant, at_ms: u64) -> FlapVerdict {
        match kind {
            EventKind::Lost { cause, .. } => {
                self.open
                    .get_or_insert_with(|| (now, at_ms, Arc::clone(cause)));
            }
            EventKind::Connected { .. } => return self.connected(now),
            _ => {}
        }
        if self.flaps.is_some() && is_part(kind) && !self.lasts(now) {
            FlapVerdict::Part
        } else {
            FlapVerdict::Alone
        }
    }

    fn connected(&mut self, now: Instant) -> FlapVerdict {
        let Some((at, at_ms, cause)) = self.open.take() else {
            return FlapVerdict::Alone;
        };
        if let Some(flaps) = &mut self.flaps {
            flaps.state.reconnects += 1;
            flaps.state.last_ms = at_ms;
            flaps.state.cause = cause;
            flaps.last = at;
            let tell = now.saturating_duration_since(flaps.told) >= RETELL;
            if tell {
                flaps.told = now;
            }
            let log = flaps.state.reconnects >= flaps.log_at;
            if log {
                flaps.log_at *= 2;
            }
            let now = flaps.state.clone();
            return FlapVerdict::Grows { now, tell, log };
        }
        self.lost.push_back((at, at_ms));
        while self
            .lost
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) > WITHIN)
        {
            self.lost.pop_front();
        }
        if self.lost.len() <= MORE_THAN {
            return FlapVerdict::Alone;
        }
        let state = Flapping {
            since_ms: self.lost[0].1,
            reconnects: self.lost.len() as u64,
            last_ms: at_ms,
            cause,
        };
        self.lost.clear();
        self.flaps = Some(Flaps {
            log_at: state.reconnects * 2,
            state: state.clone(),
            last: at,
            told: now,
        });
        FlapVerdict::Begins(state)
    }

    /// The end of flapping, if it is over.
    pub(crate) fn settle(&mut self, now: Instant) -> Option<Flapping> {
        let last = self.open.as_ref().map(|(at, ..)| *at);
        let last = last.or(self.flaps.as_ref().map(|flaps| flaps.last))?;
        if now.saturating_duration_since(last) < STEADY_AFTER {
            return None;
        }
        self.flaps.take().map(|flaps| flaps.state)
    }

    pub(crate) fn state(&self) -> Option<&Flapping> {
        self.flaps.as_ref().map(|flaps| &flaps.state)
    }

    /// Whether an outage is under way that is no blip.
    fn lasts(&self, now: Instant) -> bool {
        self.open
            .as_ref()
            .is_some_and(|(at, ..)| now.saturating_duration_since(*at) > BLIP)
    }
}

/// Whether such an event is what flapping consists of.
pub(crate) fn is_part(kind: &EventKind) -> bool {
    match kind {
        EventKind::Connected { .. }
        | EventKind::ConnectFailed { .. }
        | EventKind::Lost { .. }
        | EventKind::Unresponsive { .. }
        | EventKind::Recovered { .. }
        | EventKind::Replaced { .. }
        | EventKind::Down { .. }
        | EventKind::Breaker { .. }
        | EventKind::Fenced { .. } => true,
        EventKind::FenceRefused { .. }
        | EventKind::Reauthenticated
        | EventKind::CredentialsFailed { .. }
        | EventKind::StuckReset { .. }
        | EventKind::FailedOver { .. }
        | EventKind::OtherCluster { .. }
        | EventKind::Retired { .. }
        | EventKind::Closed { .. }
        | EventKind::Flapping { .. }
        | EventKind::FlappingEnded { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost() -> EventKind {
        EventKind::Lost {
            cause: "reset".into(),
            unknown: 0,
            not_sent: 0,
        }
    }

    fn connected() -> EventKind {
        EventKind::Connected {
            address: String::new(),
            version: String::new(),
            attempt: 1,
            outage_ms: None,
            took_ms: 1.0,
            refused: 0,
        }
    }

    /// Notes one loss that is made good; `every` later.
    fn blip(watch: &mut FlapDetector, now: &mut Instant, every: Duration) -> FlapVerdict {
        let date = 1_000;
        watch.note(&lost(), *now, date);
        let verdict = watch.note(&connected(), *now + Duration::from_millis(30), date);
        *now += every;
        verdict
    }

    fn flaps(every: Duration, times: usize) -> bool {
        let (mut watch, mut now) = (FlapDetector::default(), crate::clock::now());
        for _ in 0..times {
            blip(&mut watch, &mut now, every);
        }
        watch.state().is_some()
    }

    #[test]
    fn c14_it_flaps_from_the_eleventh_reconnect_within_ten_minutes() {
        assert!(!flaps(Duration::from_millis(400), 10));
        assert!(flaps(Duration::from_millis(400), 11));
        assert!(flaps(Duration::from_secs(59), 11));
        assert!(!flaps(Duration::from_secs(61), 100));
    }

    #[test]
    fn c14_it_grows_in_silence_and_ends_once_it_is_steady() {
        let (mut watch, mut now) = (FlapDetector::default(), crate::clock::now());
        let every = Duration::from_millis(400);
        let (mut told, mut logged) = (0, 0);
        for _ in 0..732 {
            match blip(&mut watch, &mut now, every) {
                FlapVerdict::Begins(_) => {
                    told += 1;
                    logged += 1;
                }
                FlapVerdict::Grows { tell, log, .. } => {
                    told += u32::from(tell);
                    logged += u32::from(log);
                }
                _ => {}
            }
        }
        assert_eq!(watch.state().unwrap().reconnects, 732);
        assert!(told < 260, "{told} in 293 s");
        assert_eq!(logged, 7, "at 11, 22, 44 … 704");
        assert_eq!(watch.note(&lost(), now, 2_000), FlapVerdict::Part);
        let back = watch.note(&connected(), now, 2_000);
        assert!(matches!(back, FlapVerdict::Grows { .. }), "{back:?}");
        assert_eq!(
            watch.settle(now + STEADY_AFTER - Duration::from_millis(1)),
            None
        );
        let ended = watch.settle(now + STEADY_AFTER).unwrap();
        assert_eq!((ended.reconnects, ended.last_ms), (733, 2_000));
        assert_eq!(watch.state(), None);
        assert_eq!(
            blip(&mut watch, &mut now, every),
            FlapVerdict::Alone,
            "counted anew"
        );
    }

    #[test]
    fn c14_an_outage_that_lasts_is_told_though_the_connection_flapped() {
        let (mut watch, mut now) = (FlapDetector::default(), crate::clock::now());
        for _ in 0..11 {
            blip(&mut watch, &mut now, Duration::from_secs(1));
        }
        let failed = EventKind::ConnectFailed {
            attempt: 1,
            cause: "refused".into(),
            retry_in_ms: 250.0,
        };
        watch.note(&lost(), now, 5_000);
        assert_eq!(watch.note(&failed, now, 5_100), FlapVerdict::Part);
        let later = now + BLIP + Duration::from_millis(1);
        assert_eq!(watch.note(&failed, later, 10_001), FlapVerdict::Alone);
        let over = watch.settle(now + STEADY_AFTER);
        assert!(over.is_some(), "what does not come back does not flap");
        assert_eq!(watch.note(&failed, later, 130_000), FlapVerdict::Alone);
    }
}
