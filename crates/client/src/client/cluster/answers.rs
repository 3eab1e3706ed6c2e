//! A node's answers to what it was asked of its cluster: as many of them as the rights of the user
//! allow.
//!
//! A minimal ACL, or a managed service, allows some of the questions only. CLUSTER NODES, SHARDS or
//! SLOTS is enough; each of the others makes an answer worth more, so which are missing is told.

use std::collections::BTreeSet;

use redis::Value;
use steadfast_core::report::{ClusterReport, ReportError};

use crate::error::connect::ConnectError;
use crate::link::connect::Exchange;
use crate::wire::words::{as_error, command, without_arguments};

/// See the module.
pub(super) struct ClusterAnswers {
    address: String,
    answers: Vec<(&'static str, Value)>,
}

impl ClusterAnswers {
    /// Asks a node these subcommands of CLUSTER, in one piece.
    pub(super) async fn to(
        wire: &mut Exchange<'_>,
        address: &str,
        questions: &[&'static str],
    ) -> Result<Self, ConnectError> {
        let mut answers = Self {
            address: address.to_owned(),
            answers: Vec::new(),
        };
        answers.also(wire, questions).await?;
        Ok(answers)
    }

    /// Asks these besides.
    pub(super) async fn also(
        &mut self,
        wire: &mut Exchange<'_>,
        questions: &[&'static str],
    ) -> Result<(), ConnectError> {
        let asked: Vec<_> = questions
            .iter()
            .map(|what| command(&["CLUSTER", what]))
            .collect();
        let replies = wire.exchange(&asked).await?;
        self.answers.extend(questions.iter().copied().zip(replies));
        Ok(())
    }

    pub(super) fn any_says(&self, words: &str) -> bool {
        let mut errors = self.answers.iter().filter_map(|(_, reply)| as_error(reply));
        errors.any(|(_, text)| text.contains(words))
    }

    /// The answer to a question; `None` if the server does not allow it, or knows it not.
    ///
    /// # Errors
    /// It answers no question now.
    pub(super) fn told(&self, what: &'static str) -> Result<Option<&Value>, ConnectError> {
        let asked = self.answers.iter().find(|(asked, _)| *asked == what);
        let Some((_, reply)) = asked else {
            return Ok(None);
        };
        match as_error(reply) {
            None => Ok(Some(reply)),
            Some(_) if is_not_allowed(reply) => Ok(None),
            Some(_) => refused(reply).map(|()| None),
        }
    }

    /// The commands that the server does not allow. One that it does not know is none of them.
    pub(super) fn not_allowed(&self) -> BTreeSet<&'static str> {
        let refused = (self.answers.iter())
            .filter(|(_, reply)| as_error(reply).is_some_and(|(code, _)| code == "NOPERM"));
        refused.map(|(what, _)| name(what)).collect()
    }

    /// Reads what CLUSTER NODES tells, if it may be asked.
    pub(super) fn read_nodes(&self) -> Result<Option<ClusterReport>, ConnectError> {
        let nodes = self.told("NODES")?.map(ClusterReport::read_nodes);
        nodes.transpose().map_err(|error| self.unreadable(&error))
    }

    /// The nodes and their slots, from the best answer that there is.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(super) fn report(&self) -> Result<ClusterReport, ConnectError> {
        let shards = self.told("SHARDS")?.map(ClusterReport::read_shards);
        let slots = self.told("SLOTS")?.map(ClusterReport::read_slots);
        let Some(mut report) = self.read_nodes()? else {
            let told = shards.or(slots).ok_or_else(|| self.nothing_allowed())?;
            return told.map_err(|error| self.unreadable(&error));
        };
        // Who wants to be dialled where is told by these only.
        if let Some(Ok(told)) = shards.or(slots) {
            report.prefer_endpoints_of(&told);
        }
        Ok(report)
    }

    fn nothing_allowed(&self) -> ConnectError {
        let nodes = self.answers.iter().find(|(asked, _)| *asked == "NODES");
        let said = nodes.and_then(|(_, reply)| as_error(reply));
        let (code, text) = said.unwrap_or_default();
        ConnectError::Auth(format!(
            "none of CLUSTER NODES, CLUSTER SHARDS and CLUSTER SLOTS is allowed: allow one of them to this user ({code} {})",
            without_arguments(text)
        ))
    }

    fn unreadable(&self, error: &ReportError) -> ConnectError {
        ConnectError::NotRedis {
            address: self.address.clone(),
            why: error.to_string(),
        }
    }

    /// Returns the error for a node that answers this by what is no answer.
    pub(super) fn wrong(&self, what: &str) -> ConnectError {
        ConnectError::NotRedis {
            address: self.address.clone(),
            why: format!("it answers CLUSTER {what} by what is no answer to it"),
        }
    }
}

fn name(what: &str) -> &'static str {
    match what {
        "MYID" => "CLUSTER MYID",
        "INFO" => "CLUSTER INFO",
        "NODES" => "CLUSTER NODES",
        "SHARDS" => "CLUSTER SHARDS",
        _ => "CLUSTER SLOTS",
    }
}

/// Whether the server answers so because of what was asked, and not of how it is.
fn is_not_allowed(reply: &Value) -> bool {
    as_error(reply).is_some_and(|(code, _)| matches!(code.as_str(), "NOPERM" | "ERR"))
}

/// Whether a reply is an error, and of which kind.
pub(super) fn refused(reply: &Value) -> Result<(), ConnectError> {
    let Some((code, text)) = as_error(reply) else {
        return Ok(());
    };
    let said = format!("{code} {}", without_arguments(text));
    Err(match code.as_str() {
        "NOAUTH" | "NOPERM" | "WRONGPASS" => ConnectError::Auth(said),
        "LOADING" => ConnectError::Loading,
        _ => ConnectError::Refused(said),
    })
}
