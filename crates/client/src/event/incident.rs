//! A summary of each outage: derived from the events, for the morning after.

use std::collections::VecDeque;

use crate::event::EventKind;

/// An outage of one connection, from its first sign to the connection that ended it.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Incident {
    /// The index of the connection among the client's, from 0.
    pub connection: usize,
    /// The time at which it was noticed, in milliseconds since 1970.
    pub noticed_at_ms: u64,
    /// The first sign of it.
    pub cause: String,
    /// The time for which the connection had been silent when it was noticed. A connection that the
    /// peer closed is noticed at once.
    pub detection_ms: f64,
    /// Attempts to connect that failed.
    pub failed_attempts: u64,
    /// The number of times that the connection was lost: one, unless it flapped, whose outages are
    /// one incident.
    pub times: u64,
    /// Calls refused at once because it was down.
    pub refused: u64,
    /// Requests whose outcome is unknown.
    pub unknown: usize,
    /// The time from being noticed to being in service again, of one that flapped for the last
    /// time; of a node of a cluster also to others serving in its place. Absent while it lasts.
    pub recovery_ms: Option<u64>,
}

/// Incidents kept.
const KEEP: usize = 50;

#[derive(Debug, Default)]
pub(crate) struct Incidents {
    kept: VecDeque<Incident>,
}

impl Incidents {
    /// Takes note of an event.
    pub(crate) fn note(&mut self, connection: usize, at_ms: u64, kind: &EventKind, flaps: bool) {
        if flaps && let EventKind::Lost { .. } = kind {
            self.reopen(connection);
        }
        match kind {
            EventKind::Unresponsive { quiet_ms } => {
                let incident = self.open(connection, at_ms, "the server stopped answering");
                incident.detection_ms = *quiet_ms;
            }
            EventKind::Lost { cause, unknown, .. } => {
                self.open(connection, at_ms, cause).unknown += unknown;
            }
            EventKind::Replaced { cause, unknown } => {
                if let Some(incident) = self.current(connection) {
                    incident.unknown += unknown;
                } else if *unknown > 0 {
                    self.open(connection, at_ms, cause).unknown += unknown;
                }
            }
            EventKind::ConnectFailed { cause, .. } => {
                self.open(connection, at_ms, cause).failed_attempts += 1;
            }
            EventKind::Connected { refused, .. }
            | EventKind::Recovered { refused, .. }
            | EventKind::Retired { refused } => {
                if let Some(incident) = self.current(connection) {
                    incident.refused += *refused;
                    if let EventKind::Recovered { unknown, .. } = kind {
                        incident.unknown += unknown;
                    }
                    incident.recovery_ms = Some(at_ms.saturating_sub(incident.noticed_at_ms));
                }
            }
            _ => {}
        }
    }

    /// Whether an outage of this connection is not over.
    pub(crate) fn lasts(&mut self, connection: usize) -> bool {
        self.current(connection).is_some()
    }

    fn current(&mut self, connection: usize) -> Option<&mut Incident> {
        self.kept
            .iter_mut()
            .rev()
            .find(|incident| incident.connection == connection)
            .filter(|incident| incident.recovery_ms.is_none())
    }

    fn open(&mut self, connection: usize, at_ms: u64, cause: &str) -> &mut Incident {
        if self.current(connection).is_none() {
            if self.kept.len() == KEEP {
                self.kept.pop_front();
            }
            self.kept.push_back(Incident {
                connection,
                noticed_at_ms: at_ms,
                cause: cause.to_owned(),
                detection_ms: 0.0,
                failed_attempts: 0,
                times: 1,
                refused: 0,
                unknown: 0,
                recovery_ms: None,
            });
        }
        self.current(connection)
            .expect("it was there, or was just added")
    }

    /// A connection that flaps is lost once more.
    fn reopen(&mut self, connection: usize) {
        let mut kept = self.kept.iter_mut().rev();
        let last = kept.find(|incident| incident.connection == connection);
        if let Some(incident) = last.filter(|incident| incident.recovery_ms.is_some()) {
            incident.recovery_ms = None;
            incident.times += 1;
        }
    }

    /// Makes one incident of those of a connection that has flapped since then.
    pub(crate) fn fold(&mut self, connection: usize, since_ms: u64) {
        let (of_it, mut kept): (VecDeque<Incident>, VecDeque<Incident>) =
            self.kept.drain(..).partition(|incident| {
                incident.connection == connection && incident.noticed_at_ms >= since_ms
            });
        let folded = of_it.into_iter().reduce(|mut all, next| {
            all.failed_attempts += next.failed_attempts;
            all.times += next.times;
            all.refused += next.refused;
            all.unknown += next.unknown;
            let ended = next.recovery_ms;
            let later = next.noticed_at_ms.saturating_sub(all.noticed_at_ms);
            all.recovery_ms = ended.map(|after| later + after);
            all
        });
        kept.extend(folded);
        self.kept = kept;
    }

    pub(crate) fn list(&self) -> Vec<Incident> {
        self.kept.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(incidents: &mut Incidents, connection: usize, at_ms: u64, kind: &EventKind) {
        incidents.note(connection, at_ms, kind, false);
    }

    fn failed(cause: &str) -> EventKind {
        EventKind::ConnectFailed {
            attempt: 1,
            cause: cause.into(),
            retry_in_ms: 1.0,
        }
    }

    fn connected(refused: u64) -> EventKind {
        EventKind::Connected {
            address: String::new(),
            version: String::new(),
            attempt: 1,
            outage_ms: None,
            took_ms: 1.0,
            refused,
        }
    }

    #[test]
    fn an_outage_is_one_incident_from_its_first_sign_to_the_next_connection() {
        let mut incidents = Incidents::default();
        note(
            &mut incidents,
            0,
            1000,
            &EventKind::Unresponsive { quiet_ms: 500.0 },
        );
        note(
            &mut incidents,
            0,
            1100,
            &EventKind::Lost {
                cause: "reset".into(),
                unknown: 3,
                not_sent: 1,
            },
        );
        note(&mut incidents, 0, 1200, &failed("refused"));
        note(&mut incidents, 1, 1250, &failed("refused"));
        note(&mut incidents, 0, 1500, &connected(42));
        let list = incidents.list();
        assert_eq!(list.len(), 2);
        assert_eq!(list[0].cause, "the server stopped answering");
        assert_eq!(
            (list[0].unknown, list[0].refused, list[0].failed_attempts),
            (3, 42, 1)
        );
        assert_eq!(list[0].recovery_ms, Some(500));
        assert_eq!(list[1].recovery_ms, None, "the other connection's goes on");
    }

    #[test]
    fn what_was_given_up_in_silence_counts_though_the_connection_recovered() {
        let mut incidents = Incidents::default();
        note(
            &mut incidents,
            0,
            1000,
            &EventKind::Unresponsive { quiet_ms: 500.0 },
        );
        let woke = EventKind::Recovered {
            quiet_ms: 900.0,
            refused: 7,
            unknown: 3,
        };
        note(&mut incidents, 0, 1400, &woke);
        let incident = &incidents.list()[0];
        assert_eq!((incident.unknown, incident.refused), (3, 7));
        assert_eq!(incident.detection_ms, 500.0);
        assert_eq!(incident.recovery_ms, Some(400));
    }

    #[test]
    fn a_first_connection_is_no_incident() {
        let mut incidents = Incidents::default();
        note(&mut incidents, 0, 1, &connected(0));
        assert!(incidents.list().is_empty());
    }
}
