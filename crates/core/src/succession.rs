//! The fate of the data when one primary followed another.
//!
//! Replication is asynchronous: a write that was acknowledged is lost if the primary dies before it
//! has passed it on, and no client changes that. But the history can be read. Commands of one
//! connection run in order, so the offset in an answer to ROLE is at or past every write that was
//! acknowledged before it was asked. A promoted replica tells the history that it shares
//! (`master_replid2`) and up to which byte (`second_repl_offset`). If that is past the offset, all
//! those writes have survived.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::certainty::Certainty;
use crate::command::Effect;
use crate::report::InfoReplication;

/// The most offsets that are remembered. The older ones are thinned out first.
const MAX_MARKS: usize = 64;

/// A point in the history of a primary up to which writes were acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermark {
    /// The number of bytes of the history, from ROLE.
    pub offset: u64,
    /// When ROLE was sent.
    pub at: Instant,
    /// The number of writes that were acknowledged on that connection before ROLE was sent.
    pub acknowledged: u64,
}

/// The points that are remembered of one history.
#[derive(Clone, Debug)]
pub struct Watermarks {
    history: Arc<str>,
    marks: VecDeque<Watermark>,
}

/// The relation of a new primary's data to that of the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// The new primary continues the history of the old one.
    Same {
        /// The point up to which acknowledged writes are certain to have survived. `None` if no
        /// point is.
        certain: Option<Watermark>,
        /// The number of writes that were acknowledged later. They may be lost.
        at_risk: u64,
    },
    /// The new primary has another history: what it holds may have nothing to do with what was
    /// acknowledged.
    Forked,
    /// The histories cannot be compared: they may not be asked for, or more than one primary came
    /// between.
    Unknown,
}

impl Watermarks {
    /// Begins with a primary of this history (`master_replid`).
    pub fn new(history: Arc<str>) -> Self {
        Self {
            history,
            marks: VecDeque::new(),
        }
    }

    /// Returns the history that these are points of.
    pub fn history(&self) -> &Arc<str> {
        &self.history
    }

    /// Records the answer to a ROLE.
    pub fn note(&mut self, mark: Watermark) {
        let newest = self.marks.back();
        if newest.is_some_and(|newest| newest.at > mark.at || newest.offset > mark.offset) {
            return;
        }
        if self.marks.len() == MAX_MARKS {
            // Every second one of the older half.
            let mut at = 0;
            self.marks.retain(|_| {
                at += 1;
                at > MAX_MARKS / 2 || at % 2 == 0
            });
        }
        self.marks.push_back(mark);
    }

    /// Judges what a new primary has of this history, where so many writes were acknowledged until
    /// it took over.
    pub fn judge(&self, new: Option<&InfoReplication>, acknowledged: u64) -> History {
        let Some(new) = new else {
            return History::Unknown;
        };
        let kept = if new.history == self.history {
            new.offset
        } else {
            match &new.shared {
                // The first byte that is not shared.
                Some(shared) if shared.history == self.history => shared.until.saturating_sub(1),
                // Of a third history nobody knows how it began.
                Some(_) => return History::Unknown,
                None => return History::Forked,
            }
        };
        let certain = self.marks.iter().rev().find(|mark| mark.offset <= kept);
        let survived = certain.map_or(0, |mark| mark.acknowledged);
        History::Same {
            certain: certain.copied(),
            at_risk: acknowledged.saturating_sub(survived),
        }
    }
}

/// Where a command would be repeated, seen from where it was sent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elsewhere {
    /// On the same server process, whose abandoned connections are fenced.
    SameServer,
    /// On the same server process, where connections cannot be fenced.
    SameServerUnfenced,
    /// On a server that has taken the first one's place by proof: a newer epoch, or the shared
    /// history.
    Successor,
    /// On another server, of which nothing is proven. The first one may still be in office and run
    /// what it was sent.
    Stranger,
}

/// Returns whether a command that ended so may be sent once more, with this effect, at that place.
///
/// What was not sent or was rejected has not run, and may go anywhere. After an unknown outcome
/// reads may; and a write of which the last wins, if what was sent first cannot be applied after
/// it: it is fenced, or the server that has it was deposed, and what it still applies is thrown
/// away.
pub fn may_repeat(certainty: Certainty, effect: Effect, place: Elsewhere) -> bool {
    match (certainty, effect) {
        (Certainty::NotSent | Certainty::Rejected, _) | (_, Effect::Read) => true,
        (Certainty::Unknown, Effect::LastWins) => {
            matches!(place, Elsewhere::SameServer | Elsewhere::Successor)
        }
        (Certainty::Unknown, _) => false,
    }
}

/// The worth of an answer that comes when its server has been deposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateAnswer {
    /// The answer is an error that proves that nothing ran: it stands.
    Rejected,
    /// The answer passes for nothing: the command is sent again, to the new primary.
    AskAgain,
    /// The answer passes for nothing, and what it did there is thrown away or not: nobody knows.
    Unknown,
}

/// Judges an answer of a server that has been deposed since the command was sent.
pub fn late_answer(effect: Effect, was_refused: bool) -> LateAnswer {
    match effect {
        _ if was_refused => LateAnswer::Rejected,
        Effect::Read => LateAnswer::AskAgain,
        _ => LateAnswer::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::SharedHistory;

    fn promoted(history: &str, shared: Option<(&str, u64)>, offset: u64) -> InfoReplication {
        InfoReplication {
            is_primary: true,
            history: history.into(),
            offset,
            shared: shared.map(|(history, until)| SharedHistory {
                history: history.into(),
                until,
            }),
            link_up: None,
            replicas: Vec::new(),
            faults: Default::default(),
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a test's own time")]
    fn marks() -> (Watermarks, Instant) {
        let start = Instant::now();
        let mut marks = Watermarks::new("old".into());
        for n in 1..=3u32 {
            marks.note(Watermark {
                offset: u64::from(n) * 100,
                at: start + Duration::from_secs(1) * n,
                acknowledged: u64::from(n) * 10,
            });
        }
        (marks, start)
    }

    #[test]
    fn t20_writes_before_the_last_shared_offset_have_survived_and_later_ones_are_at_risk() {
        let (marks, start) = marks();
        let judge = |shared, acknowledged| {
            let new = promoted("new", Some(("old", shared)), 500);
            match marks.judge(Some(&new), acknowledged) {
                History::Same { certain, at_risk } => (certain.map(|mark| mark.at), at_risk),
                other => panic!("{other:?}"),
            }
        };
        let after = |secs| Some(start + Duration::from_secs(secs));
        assert_eq!(judge(301, 30), (after(3), 0), "byte 300 is shared");
        assert_eq!(judge(300, 30), (after(2), 10), "byte 300 is not");
        assert_eq!(judge(1_000, 34), (after(3), 4));
        assert_eq!(judge(1, 34), (None, 34));
    }

    #[test]
    fn t20_another_history_is_forked_and_what_cannot_be_compared_is_unknown() {
        let (marks, _) = marks();
        let judge = |new: InfoReplication| marks.judge(Some(&new), 30);
        assert_eq!(judge(promoted("new", None, 500)), History::Forked);
        let third = promoted("new", Some(("between", 400)), 500);
        assert_eq!(judge(third), History::Unknown);
        assert_eq!(marks.judge(None, 30), History::Unknown);
        // The same server, rolled back to where it was.
        let History::Same { at_risk, .. } = judge(promoted("old", None, 250)) else {
            panic!("it is the same history")
        };
        assert_eq!(at_risk, 10);
    }

    #[test]
    fn t31_the_offsets_that_are_remembered_are_bounded_and_the_newest_stay() {
        let (mut marks, start) = marks();
        for n in 4..10_000u32 {
            marks.note(Watermark {
                offset: u64::from(n) * 100,
                at: start + Duration::from_secs(1) * n,
                acknowledged: u64::from(n),
            });
        }
        assert!(marks.marks.len() <= MAX_MARKS);
        assert_eq!(
            marks.marks.back().map(|mark| mark.acknowledged),
            Some(9_999)
        );
        let recent = marks.marks.iter().filter(|mark| mark.acknowledged > 9_960);
        assert!(recent.count() > 30, "those that matter are dense");
    }

    #[test]
    fn t22_a_write_of_unknown_outcome_is_repeated_elsewhere_only_after_a_proven_succession() {
        use Certainty::{NotSent, Rejected, Unknown};
        use Effect::{Accumulating, Conditional, LastWins, Opaque, Read};
        use Elsewhere::{SameServer, SameServerUnfenced, Stranger, Successor};
        for place in [SameServer, SameServerUnfenced, Successor, Stranger] {
            for effect in [Read, LastWins, Conditional, Accumulating, Opaque] {
                assert!(may_repeat(NotSent, effect, place));
                assert!(may_repeat(Rejected, effect, place));
                let safe =
                    effect == Read || effect == LastWins && matches!(place, SameServer | Successor);
                assert_eq!(
                    may_repeat(Unknown, effect, place),
                    safe,
                    "{effect:?} {place:?}"
                );
            }
        }
    }

    #[test]
    fn t18_no_answer_of_a_deposed_primary_passes_for_success() {
        assert_eq!(late_answer(Effect::Read, false), LateAnswer::AskAgain);
        assert_eq!(late_answer(Effect::LastWins, false), LateAnswer::Unknown);
        assert_eq!(
            late_answer(Effect::Accumulating, false),
            LateAnswer::Unknown
        );
        assert_eq!(
            late_answer(Effect::Accumulating, true),
            LateAnswer::Rejected
        );
    }
}
