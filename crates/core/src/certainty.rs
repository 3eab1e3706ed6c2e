//! How much is known of a command that failed.
//!
//! Whether a command may be repeated, and what its caller may conclude, hangs on one question that
//! most clients cannot answer: could the server have executed it? Every failure in Steadfast
//! carries one of three answers.

use std::fmt;

use crate::command::Errors;

/// How much is known of a command after it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Certainty {
    /// The server cannot have executed it: it was never written whole, and never will be.
    NotSent,
    /// The server answered, and refused it before running it.
    Rejected,
    /// The command was written and no answer came, or it may have failed half way: it may or may
    /// not have taken effect.
    Unknown,
}

impl Certainty {
    /// The name used in logs, metrics and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not_sent",
            Self::Rejected => "rejected",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Certainty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotSent => "not sent",
            Self::Rejected => "rejected",
            Self::Unknown => "outcome unknown",
        })
    }
}

/// The meaning of an error reply for the server, beyond the command that it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The command itself is at fault (type, syntax, permission…): repeating it is useless, and the
    /// server is well.
    Lasting,
    /// The server cannot serve now, but may soon: worth repeating, and a failure of infrastructure
    /// for the breaker.
    Passing,
    /// The server is not, or no longer, the one that is wanted: repeating it here is useless, a new
    /// connection may help.
    WrongServer,
    /// The server was demoted while the command waited in it, and nothing of the command was done:
    /// it may be made again, on another connection, wherever the primary is now.
    Demoted,
    /// A redirect, or a refusal that will pass. Nothing of the command has run; another node, or
    /// the same one later, will take it. The server that answered is healthy.
    Redirected,
    /// The connection is not, or no longer, let in: it is not authenticated, or the server's
    /// protected mode bars it.
    Unauthenticated,
}

/// Judges an error reply by its code and text, as Redis 7 and Valkey word them. The text must be
/// the server's own: see [`Errors`].
///
/// ```
/// use steadfast_core::certainty::{Refusal, refusal};
///
/// assert_eq!(refusal("LOADING", "Redis is loading the dataset in memory"), Refusal::Passing);
/// assert_eq!(refusal("WRONGTYPE", "Operation against a key"), Refusal::Lasting);
/// ```
pub fn refusal(code: &str, detail: &str) -> Refusal {
    match code {
        "LOADING" | "BUSY" | "CLUSTERDOWN" | "MASTERDOWN" | "NOREPLICAS" => Refusal::Passing,
        "MOVED" | "ASK" | "TRYAGAIN" => Refusal::Redirected,
        "READONLY" => Refusal::WrongServer,
        // CLIENT UNBLOCK … ERROR answers by the same code, and says nothing of the server.
        "UNBLOCKED" if detail.starts_with("force unblock from blocking operation") => {
            Refusal::Demoted
        }
        "NOAUTH" | "DENIED" => Refusal::Unauthenticated,
        "ERR" if detail.starts_with("max number of clients") => Refusal::Passing,
        _ => Refusal::Lasting,
    }
}

/// True where an error reply proves that the command, which was sent under this name, has not run.
///
/// The words of the error prove it only if nobody but the server can have written them. A script
/// may write any (`return redis.error_reply('LOADING …')`), after whatever it has done; so of a
/// script that was answered nothing is proved, not even by the code alone.
pub fn was_refused_before_running(code: &str, detail: &str, errors: Errors, name: &[u8]) -> bool {
    match errors {
        Errors::Refuse => true,
        Errors::MayFollowAPart => !matches!(code, "ERR" | "IOERR"),
        Errors::ProveNothing => false,
        Errors::OfNoKnownCommand => code == "ERR" && says_unknown(detail, name),
    }
}

/// Whether these are the words in which a server says that it has no command of that name.
fn says_unknown(detail: &str, name: &[u8]) -> bool {
    let Some(quoted) = detail.strip_prefix("unknown command ") else {
        return false;
    };
    quoted
        .strip_prefix(['\'', '`'])
        .and_then(|rest| rest.as_bytes().strip_prefix(name))
        .is_some_and(|rest| matches!(rest, [b'\'' | b'`', ..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_is_judged_by_its_code() {
        for (code, judged) in [
            ("LOADING", Refusal::Passing),
            ("BUSY", Refusal::Passing),
            ("TRYAGAIN", Refusal::Redirected),
            ("CLUSTERDOWN", Refusal::Passing),
            ("MASTERDOWN", Refusal::Passing),
            ("NOREPLICAS", Refusal::Passing),
            ("READONLY", Refusal::WrongServer),
            ("NOAUTH", Refusal::Unauthenticated),
            ("DENIED", Refusal::Unauthenticated),
            ("WRONGTYPE", Refusal::Lasting),
            ("NOPERM", Refusal::Lasting),
            ("OOM", Refusal::Lasting),
            ("MISCONF", Refusal::Lasting),
            ("EXECABORT", Refusal::Lasting),
            ("MOVED", Refusal::Redirected),
            ("ASK", Refusal::Redirected),
            ("ERR", Refusal::Lasting),
        ] {
            assert_eq!(refusal(code, "in some words"), judged, "{code}");
        }
    }

    #[test]
    fn a_full_server_is_a_passing_refusal_although_its_reply_is_a_bare_err() {
        let full = "max number of clients reached";
        assert_eq!(refusal("ERR", full), Refusal::Passing);
        assert_eq!(refusal("ERR", "syntax error"), Refusal::Lasting);
        assert_eq!(refusal("OTHER", full), Refusal::Lasting);
    }

    #[test]
    fn c13_whoever_waits_in_a_server_that_is_demoted_is_told_from_one_that_is_unblocked_by_hand() {
        let words = "force unblock from blocking operation, instance state changed";
        for change in ["(master -> replica?)", "(primary -> replica?)"] {
            let judged = refusal("UNBLOCKED", &format!("{words} {change}"));
            assert_eq!(judged, Refusal::Demoted, "{change}");
        }
        let by_hand = refusal("UNBLOCKED", "client unblocked via CLIENT UNBLOCK");
        assert_eq!(by_hand, Refusal::Lasting);
        assert_eq!(refusal("ERR", words), Refusal::Lasting);
    }

    #[test]
    fn certainties_are_named_for_logs_and_for_people() {
        for (certainty, label, words) in [
            (Certainty::NotSent, "not_sent", "not sent"),
            (Certainty::Rejected, "rejected", "rejected"),
            (Certainty::Unknown, "unknown", "outcome unknown"),
        ] {
            assert_eq!(certainty.as_str(), label);
            assert_eq!(certainty.to_string(), words);
        }
    }

    /// The words of Redis itself, each as a script may write them too.
    const WORDS: [(&str, &str); 13] = [
        ("LOADING", "Redis is loading the dataset in memory"),
        ("BUSY", "Redis is busy running a script."),
        ("MASTERDOWN", "Link with MASTER is down"),
        ("READONLY", "You can't write against a read only replica."),
        ("NOAUTH", "Authentication required."),
        ("NOSCRIPT", "No matching script. Please use EVAL."),
        (
            "EXECABORT",
            "Transaction discarded because of previous errors.",
        ),
        ("NOREPLICAS", "Not enough good replicas to write."),
        ("MISCONF", "Redis is configured to save RDB snapshots"),
        (
            "NOPERM",
            "this user has no permissions to run the 'eval' command",
        ),
        ("CLUSTERDOWN", "The cluster is down"),
        ("ERR", "unknown command 'EVAL', with args beginning with: "),
        ("ERR", "max number of clients reached"),
    ];

    #[test]
    fn c2_a_script_that_was_answered_has_run_whatever_the_words_of_its_error() {
        for (code, words) in WORDS {
            let refused = |errors| was_refused_before_running(code, words, errors, b"EVAL");
            assert!(!refused(Errors::ProveNothing), "{code} {words}");
            assert!(refused(Errors::Refuse), "{code} {words}");
        }
        for (code, words) in &WORDS[..11] {
            let refused = |errors| was_refused_before_running(code, words, errors, b"JSON.SET");
            assert!(
                !refused(Errors::OfNoKnownCommand),
                "a module may run scripts: {code}"
            );
            assert!(
                refused(Errors::MayFollowAPart),
                "{code}: before a key was moved"
            );
        }
    }

    #[test]
    fn c2_a_migration_that_failed_may_have_moved_some_keys() {
        for (code, words) in [
            ("IOERR", "error or timeout reading from target"),
            ("ERR", "Target instance replied with error: OOM"),
        ] {
            let errors = Errors::MayFollowAPart;
            assert!(!was_refused_before_running(code, words, errors, b"MIGRATE"));
        }
    }

    #[test]
    fn c2_a_command_that_the_server_does_not_know_is_rejected() {
        let refused = |code, words, name: &[u8]| {
            was_refused_before_running(code, words, Errors::OfNoKnownCommand, name)
        };
        let (now, before) = (
            "unknown command 'JSON.SET', with args beginning with: 'k' ",
            "unknown command `JSON.SET`, with args beginning with: `k`, ",
        );
        assert!(refused("ERR", now, b"JSON.SET") && refused("ERR", before, b"JSON.SET"));
        assert!(!refused("OTHER", now, b"JSON.SET"));
        assert!(!refused(
            "ERR",
            "no such unknown command 'JSON.SET'",
            b"JSON.SET"
        ));
        // What it ran, not itself, is what the server did not know.
        assert!(!refused("ERR", now, b"TFCALL") && !refused("ERR", now, b"JSON.S"));
    }
}
