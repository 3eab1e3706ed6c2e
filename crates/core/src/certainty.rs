//! What is known of a command that failed.
//!
//! Whether a command may be repeated, and what its caller may conclude, hangs on one question that most clients cannot answer: could the
//! server have executed it? Every failure in Steadfast carries one of three answers.

use std::fmt;

/// What is known of a command after it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Certainty {
    /// The server cannot have executed it: it was never written whole, and never will be.
    NotSent,
    /// The server answered, and refused it before running it.
    Rejected,
    /// It was written and no answer came, or it may have failed half way: it may or may not have taken effect.
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

/// What an error reply says about the server, beyond the command it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The command itself is at fault (type, syntax, permission…): repeating it is useless, and the server is well.
    Lasting,
    /// The server cannot serve now, but may soon: worth repeating, and a failure of infrastructure for the breaker.
    Passing,
    /// The server is not, or no longer, the one that is wanted: repeating it here is useless, a new connection may help.
    WrongServer,
    /// The connection is not, or no longer, authenticated.
    Unauthenticated,
}

/// Judges an error reply by its code and text, as Redis 7 and Valkey word them.
pub fn refusal(code: &str, detail: &str) -> Refusal {
    match code {
        "LOADING" | "BUSY" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN" | "NOREPLICAS" => {
            Refusal::Passing
        }
        "READONLY" => Refusal::WrongServer,
        "NOAUTH" => Refusal::Unauthenticated,
        "ERR" if detail.starts_with("max number of clients") => Refusal::Passing,
        _ => Refusal::Lasting,
    }
}

/// True where an error reply cannot follow a partial effect.
///
/// A script, a transaction or MIGRATE that failed may have run half way (`opaque`), and a script may answer with any code it likes: so of those only
/// the server's own words count, not the code alone. Everything else that Redis answers with an error was refused before it ran.
pub fn was_refused_before_running(code: &str, detail: &str, opaque: bool) -> bool {
    if !opaque {
        return true;
    }
    // Redis 7 says so when the error came from inside a script.
    if detail.contains("script: ") {
        return false;
    }
    let own_words = match code {
        "LOADING" => "Redis is loading",
        "BUSY" => "Redis is busy",
        "MASTERDOWN" => "Link with MASTER",
        "READONLY" => "You can't write against a read only",
        "NOAUTH" => "Authentication required",
        "NOSCRIPT" => "No matching script",
        "EXECABORT" => "Transaction discarded",
        "NOREPLICAS" => "Not enough good replicas",
        "MISCONF" => "Redis is configured to save",
        "NOPERM" => "this user has no permissions",
        "CLUSTERDOWN" => "The cluster is down",
        _ => return false,
    };
    detail
        .to_ascii_lowercase()
        .contains(&own_words.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_server_is_a_passing_refusal_although_its_reply_is_a_bare_err() {
        assert_eq!(
            refusal("ERR", "max number of clients reached"),
            Refusal::Passing
        );
        assert_eq!(refusal("ERR", "syntax error"), Refusal::Lasting);
    }

    #[test]
    fn an_error_of_a_script_does_not_prove_that_nothing_ran() {
        let refused = was_refused_before_running;
        let wrong = "Operation against a key holding the wrong kind of value";
        assert!(!refused("WRONGTYPE", wrong, true));
        assert!(refused("WRONGTYPE", wrong, false));
        assert!(refused(
            "LOADING",
            "Redis is loading the dataset in memory",
            true
        ));
        assert!(
            !refused("BUSY", "half way", true),
            "a script may answer with any code"
        );
        let inside =
            "this user has no permissions to run the 'set' command script: 1f, on @user_script:1.";
        assert!(!refused("NOPERM", inside, true));
        let moved = "error or timeout reading from target";
        assert!(
            !refused("IOERR", moved, true),
            "MIGRATE may have moved some"
        );
    }
}
