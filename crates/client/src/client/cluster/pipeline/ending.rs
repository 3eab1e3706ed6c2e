//! The end of commands that are not sent, and of the whole.

use std::collections::BTreeSet;

use steadfast_core::slot::Slot;
use steadfast_core::split::Failed;
use steadfast_core::split::pipeline::{CommandOutcome, PipelineFailed};

use super::PipelineRun;
use crate::client::cluster::order::{LostKeys, Slots};
use crate::error::{Certainty, Error, ErrorKind};

impl<'a> PipelineRun<'a> {
    /// Ends what is to be sent of these slots, and is not after all. Of what was sent in an earlier
    /// round that is remembered.
    pub(super) fn end_in(&mut self, slots: &[Slot], error: &Error) {
        let slots: BTreeSet<&Slot> = slots.iter().collect();
        self.split.end(|target| {
            let ends = target.slot.is_some_and(|slot| slots.contains(&slot));
            ends.then(|| not_sent_for(error))
        });
    }

    /// Ends what has to do with these keys. What else is to be sent of their slots has its turn
    /// still.
    pub(super) fn end_of_keys(&mut self, lost: &LostKeys) {
        let error = Error::new(ErrorKind::Overtaken, Certainty::NotSent);
        let mut ended = false;
        self.split.end(|target| {
            let lost = lost.get(&target.slot?)?;
            lost.share(target.keys).then(|| {
                ended = true;
                not_sent_for(&error)
            })
        });
        if !ended {
            let slots: Slots = lost.keys().copied().collect();
            self.end_in(&slots, &error);
        }
    }

    /// Ends all that is to be sent.
    pub(super) fn end_all(&mut self, error: &Error) {
        self.split.end(|_| Some(not_sent_for(error)));
    }
}

/// The end of what is not sent for this reason.
pub(super) fn not_sent_for(error: &Error) -> Failed<Error> {
    Failed {
        error: error.clone(),
        certainty: error.certainty(),
    }
}

pub(super) fn failed(failed: PipelineFailed<Error>) -> Error {
    let outcomes = || (0..).zip(&failed.outcomes);
    let of = |unknown: bool| {
        let commands = outcomes().filter(|(_, outcome)| match outcome {
            CommandOutcome::Answered(_) => false,
            CommandOutcome::Failed(certainty) => (*certainty == Certainty::Unknown) == unknown,
        });
        commands.map(|(number, _)| number).collect()
    };
    let answered = |outcome: &CommandOutcome| matches!(outcome, CommandOutcome::Answered(_));
    let done = outcomes().filter(|(_, outcome)| answered(outcome)).count();
    if done == 0 {
        return failed.error.at_least(failed.certainty);
    }
    let kind = ErrorKind::Partial {
        cause: failed.error.to_string().into(),
        done,
        not_run: of(false),
        unknown: of(true),
    };
    Error::new(kind, failed.certainty)
}
