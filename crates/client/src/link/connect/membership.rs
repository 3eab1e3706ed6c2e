//! Whether a server is the one node of a cluster that is wanted, and serves.
//!
//! A node that has just been started, or comes back from a minority, refuses commands for seconds
//! while it answers PING. So its own word on the cluster's state is asked, not only whether it
//! lives.

use redis::Value;
use steadfast_core::report::{ClusterInfo, ServerMode};

use super::exchange::Exchange;
use super::facts::ServerFacts;
use crate::error::connect::ConnectError;
use crate::membership::Membership;
use crate::settings::Settings;
use crate::target::Address;
use crate::wire::words::{as_error, command, text};

/// Refuses a server of another kind than the URL names.
pub(super) fn is_of_the_kind(
    settings: &Settings,
    facts: &ServerFacts,
    address: &str,
) -> Result<(), ConnectError> {
    let wanted =
        settings.member.is_some() || matches!(settings.target.address, Address::Cluster(_));
    match (wanted, facts.mode) {
        (false, Some(ServerMode::Cluster)) => Err(ConnectError::Cluster {
            address: address.into(),
        }),
        (true, Some(ServerMode::Standalone)) => Err(ConnectError::NotCluster {
            address: address.into(),
        }),
        _ => Ok(()),
    }
}

/// Asks a node who it is, and whether it serves. What it does not allow to be asked stays unknown.
pub(super) async fn check(
    member: &Membership,
    wire: &mut Exchange<'_>,
    address: &str,
) -> Result<(), ConnectError> {
    let mut questions = vec![command(&["CLUSTER", "MYID"]), command(&["CLUSTER", "INFO"])];
    if member.as_replica {
        questions.push(command(&["READONLY"]));
    }
    let replies = wire.exchange(&questions).await?;
    let [id, info, ..] = &replies[..] else {
        return Err(no_answer(address, "CLUSTER MYID"));
    };
    match id {
        Value::BulkString(id)
            if (member.ids.iter()).any(|one| id.as_slice() == one.as_str().as_bytes()) => {}
        Value::BulkString(id) => {
            return Err(ConnectError::Stranger {
                address: address.into(),
                found: String::from_utf8_lossy(id).into_owned(),
                wanted: member.wanted(),
            });
        }
        Value::ServerError(_) => {}
        _ => return Err(no_answer(address, "CLUSTER MYID")),
    }
    if as_error(info).is_none() {
        let info =
            ClusterInfo::read(&text(info)).map_err(|_| no_answer(address, "CLUSTER INFO"))?;
        if member.must_serve && !info.is_ok {
            return Err(ConnectError::ClusterDown {
                address: address.into(),
            });
        }
    }
    if let Some((code, text)) = replies.get(2).and_then(as_error) {
        return Err(ConnectError::Refused(format!("READONLY: {code} {text}")));
    }
    Ok(())
}

fn no_answer(address: &str, asked: &str) -> ConnectError {
    ConnectError::NotRedis {
        address: address.into(),
        why: format!("it answers {asked} by what is no answer to it"),
    }
}
