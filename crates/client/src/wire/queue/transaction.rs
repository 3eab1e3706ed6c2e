//! The gate that keeps other commands out of the midst of a transaction, and knows when it is over.
//!
//! Between MULTI and EXEC the server queues whatever it is told: a CLIENT KILL would kill nobody
//! until EXEC, and add a reply to the transaction's own. So such commands wait for its end. Only
//! the server's replies tell when that is, whoever still waits for them: a caller that goes away,
//! or whose EXEC was never sent, ends nothing.

use steadfast_core::conn::Reply;

use super::command::{DriverCommand, TxStep, TxSteps};

/// The transactions of one connection, and the commands that wait for their end.
#[derive(Default)]
pub(crate) struct Transactions {
    /// Begun, as far as was asked, and not yet known to be over. More than one only if the next was
    /// begun before the end of the first was answered.
    open: usize,
    held: Vec<DriverCommand>,
}

/// The number of commands that may wait for the end of a transaction. One that waits so long is
/// lost to the first fence among them.
const HELD: usize = 256;

impl Transactions {
    /// Notes that a request with these steps is about to be submitted.
    pub(crate) fn begin(&mut self, steps: &TxSteps) {
        self.open += multis(steps);
    }

    /// Notes that these steps never reached the server. Returns the commands that have waited long
    /// enough.
    pub(crate) fn never_sent(&mut self, steps: &TxSteps) -> Vec<DriverCommand> {
        self.open = self.open.saturating_sub(multis(steps));
        self.released()
    }

    /// Notes that these steps were answered. Returns the commands that have waited long enough.
    pub(crate) fn answered(&mut self, steps: &TxSteps, reply: &Reply) -> Vec<DriverCommand> {
        let replies = match reply {
            Reply::One(reply) => std::slice::from_ref(reply),
            Reply::Many(replies) => replies,
        };
        for (place, step) in steps {
            if replies
                .get(*place)
                .is_some_and(|reply| step.ends_one(reply))
            {
                self.open = self.open.saturating_sub(1);
            }
        }
        self.released()
    }

    /// Keeps a command that would be queued; gives it back if it would not. If too many wait, the
    /// transaction is given up instead.
    pub(crate) fn hold(&mut self, command: DriverCommand) -> Option<DriverCommand> {
        match command {
            DriverCommand::Fence(_) | DriverCommand::Reauthenticate(_)
                if self.open > 0 && self.held.len() == HELD =>
            {
                let cause = "too much has happened while its transaction was open";
                Some(DriverCommand::Abandon(cause.into()))
            }
            DriverCommand::Fence(_) | DriverCommand::Reauthenticate(_) if self.open > 0 => {
                self.held.push(command);
                None
            }
            command => Some(command),
        }
    }

    pub(crate) fn holds_a_fence(&self) -> bool {
        let mut held = self.held.iter();
        held.any(|command| matches!(command, DriverCommand::Fence(_)))
    }

    fn released(&mut self) -> Vec<DriverCommand> {
        match self.open {
            0 => std::mem::take(&mut self.held),
            _ => Vec::new(),
        }
    }
}

fn multis(steps: &TxSteps) -> usize {
    let multi = |(_, step): &&(usize, TxStep)| *step == TxStep::Multi;
    steps.iter().filter(multi).count()
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::*;

    fn error(line: &str) -> Reply {
        Reply::One(redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("an error"))
    }

    fn command() -> DriverCommand {
        DriverCommand::Reauthenticate(b"AUTH".to_vec())
    }

    fn begun() -> Transactions {
        let mut transactions = Transactions::default();
        transactions.begin(&vec![(0, TxStep::Multi)]);
        assert!(transactions.hold(command()).is_none(), "it waits");
        transactions
    }

    #[test]
    fn outside_of_a_transaction_nothing_waits() {
        assert!(Transactions::default().hold(command()).is_some());
    }

    #[test]
    fn a_transaction_for_whose_end_too_much_waits_is_given_up() {
        let mut transactions = begun();
        for _ in 1..HELD {
            assert!(transactions.hold(command()).is_none(), "it waits");
        }
        let told = transactions.hold(command());
        assert!(matches!(told, Some(DriverCommand::Abandon(_))));
    }

    #[test]
    fn the_end_is_what_the_server_says_is_the_end() {
        let ok = || Reply::One(Value::Okay);
        for (step, reply, over) in [
            (TxStep::Exec, Reply::One(Value::Array(Vec::new())), true),
            (TxStep::Exec, Reply::One(Value::Nil), true),
            (TxStep::Exec, error("EXECABORT Transaction discarded"), true),
            (TxStep::Exec, error("ERR EXEC without MULTI"), false),
            (TxStep::Discard, ok(), true),
            (TxStep::Discard, error("NOPERM no permissions"), false),
            (TxStep::Multi, ok(), false),
            (TxStep::Multi, error("NOPERM no permissions"), true),
        ] {
            let mut transactions = begun();
            let released = transactions.answered(&vec![(0, step)], &reply);
            assert_eq!(released.len(), usize::from(over), "{step:?} {reply:?}");
            assert_eq!(transactions.hold(command()).is_some(), over);
        }
    }

    #[test]
    fn a_nested_multi_and_the_next_transaction_leave_the_first_one_open() {
        let mut transactions = begun();
        transactions.begin(&vec![(0, TxStep::Multi)]);
        let nested = error("ERR MULTI calls can not be nested");
        assert!(
            transactions
                .answered(&vec![(0, TxStep::Multi)], &nested)
                .is_empty()
        );
        let done = Reply::One(Value::Nil);
        assert_eq!(
            transactions.answered(&vec![(0, TxStep::Exec)], &done).len(),
            1
        );
    }

    #[test]
    fn a_multi_that_was_never_sent_has_begun_nothing() {
        let mut transactions = begun();
        assert_eq!(transactions.never_sent(&vec![(0, TxStep::Multi)]).len(), 1);
        let mut transactions = begun();
        assert!(transactions.never_sent(&vec![(0, TxStep::Exec)]).is_empty());
    }
}
