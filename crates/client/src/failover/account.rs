//! The cost of a failover, as far as it can be known.
//!
//! Replication is asynchronous: a write that was acknowledged is lost if its primary dies before it
//! has passed it on. But the histories can be compared. Once a heartbeat the primary is asked for
//! its offset (ROLE), which is at or past every write that was acknowledged before; and a new
//! primary says up to which offset it shares the old one's history (INFO).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, Value};
use steadfast_core::report::{InfoReplication, RoleReport};
use steadfast_core::succession::{History, Watermark, Watermarks};

use crate::call;
use crate::call::plan::Payload;
use crate::clock;
use crate::error::ErrorKind;
use crate::event::EventKind;
use crate::link::shared::Shared;
use crate::link::{ConnectionState, Link};
use crate::options::CallOptions;
use crate::sentinel::{Discovery, FailoverHistory, ReplicaStatus, Switch};
use crate::target::Role;
use crate::task::Apart;
use steadfast_core::conn::Reply;

/// The time that the new primary may take to serve before a failover is told without its history.
const TOLD_WITHIN: Duration = Duration::from_secs(10);
/// The pause before what the server does not allow is asked again.
const REFUSED_PAUSE: Duration = Duration::from_secs(60);
/// The pause between looks whether the new primary serves.
const LOOK: Duration = Duration::from_millis(20);

/// Notes how far the primary is, and tells each failover with what it cost. Ends with the client.
pub(crate) async fn keep_account(shared: Arc<Shared>) {
    let Some(discovery) = shared.discovery.clone() else {
        return;
    };
    let link = Arc::clone(&shared.links[0]);
    let mut marks: Option<Watermarks> = None;
    loop {
        let in_service = clock::timeout(TOLD_WITHIN, in_service(&shared, &link));
        let served = tokio::select! {
            biased;
            () = link.closed() => return,
            served = in_service => served,
        };
        let Some((term, epoch)) = served else {
            tell(&shared, &discovery, |_| FailoverHistory::Unknown);
            continue;
        };
        let info = ask(&shared, redis::cmd("INFO").arg("replication")).await;
        discovery.note_answer("INFO", &info);
        let info = info.reply();
        let info = info.and_then(|reply| InfoReplication::read(&text(&reply)?).ok());
        if shared.term() != term || link.epoch() != epoch {
            continue;
        }
        let before = marks.take();
        tell(&shared, &discovery, |switch| {
            // One of several in a row has left no trace.
            let marks = before.as_ref().filter(|_| switch.to.term.0 == term);
            cost(marks, info.as_ref(), switch)
        });
        marks = info.map(|info| match before {
            Some(marks) if *marks.history() == info.history => marks,
            _ => Watermarks::new(info.history),
        });
        note_while_it_serves(&shared, &discovery, &link, &mut marks, (term, epoch)).await;
        // Nobody tells of them any more: what the sentinels say stands.
        *discovery.replicas.lock() = None;
        if link.state() == ConnectionState::Closed {
            return;
        }
    }
}

async fn note_while_it_serves(
    shared: &Shared,
    discovery: &Discovery,
    link: &Link,
    marks: &mut Option<Watermarks>,
    (term, epoch): (u64, u64),
) {
    let places = Apart::new(1);
    loop {
        let (at, acknowledged) = (clock::now(), discovery.acknowledged());
        let role = ask(shared, &redis::cmd("ROLE")).await;
        let here = shared.term() == term && link.epoch() == epoch;
        if !here {
            return;
        }
        discovery.note_answer("ROLE", &role);
        let pause = match &role {
            Inquiry::Refused => REFUSED_PAUSE,
            _ => shared.settings.heartbeat,
        };
        let role = role.reply();
        let role = role.and_then(|reply| RoleReport::read(&reply).ok());
        if matches!(role, Some(RoleReport::Replica { .. })) && shared.settings.role == Role::Primary
        {
            link.reset(epoch, "the server became a replica");
            return;
        }
        if let (Some(RoleReport::Primary { offset, .. }), Some(marks)) = (&role, marks.as_mut()) {
            marks.note(Watermark {
                offset: *offset,
                at,
                acknowledged,
            });
        }
        let told = told_by(shared, &places, role).await;
        *discovery.replicas.lock() = told;
        tokio::select! {
            biased;
            () = link.closed() => return,
            () = shared.deposed(term) => return,
            () = tokio::time::sleep(pause) => {}
        }
        if link.epoch() != epoch || link.state() != ConnectionState::Ready {
            return;
        }
    }
}

/// Returns the replicas that the primary tells of, at the addresses that sentinels name as well;
/// `None` where it tells nothing.
async fn told_by(
    shared: &Shared,
    places: &Apart,
    role: Option<RoleReport>,
) -> Option<Vec<ReplicaStatus>> {
    let Some(RoleReport::Primary {
        offset, replicas, ..
    }) = role
    else {
        return None;
    };
    let translation = shared.settings.translation.clone();
    let told = move || {
        let replicas = replicas.into_iter().map(|replica| ReplicaStatus {
            address: translation.of(replica.endpoint).to_string(),
            in_sync: true,
            lag_bytes: Some(offset.saturating_sub(replica.offset)),
            priority: None,
        });
        replicas.collect()
    };
    if shared.settings.translation.is_none() {
        return Some(told());
    }
    let limit = shared.settings.connect_timeout;
    let told = shared.apart(places, limit, async move { Ok(told()) });
    told.await.ok()
}

/// Waits until the primary of the present term serves.
async fn in_service(shared: &Shared, link: &Link) -> (u64, u64) {
    loop {
        let term = shared.term();
        let epoch = link.epoch();
        let of_this_term = {
            let view = link.view.lock();
            view.facts.as_ref().is_some_and(|facts| facts.term == term)
        };
        if of_this_term && link.state() == ConnectionState::Ready {
            return (term, epoch);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The outcome of a question.
enum Inquiry {
    Answered(Value),
    /// The user may not ask it.
    Refused,
    Failed,
}

impl Inquiry {
    fn reply(self) -> Option<Value> {
        match self {
            Self::Answered(value) => Some(value),
            Self::Refused | Self::Failed => None,
        }
    }
}

async fn ask(shared: &Shared, cmd: &Cmd) -> Inquiry {
    let payload = Payload::Command(cmd);
    let Ok(plan) = payload.plan(shared.links.len(), true) else {
        return Inquiry::Failed;
    };
    // The next connection may be to another server.
    let options = CallOptions::new().attempts(1);
    match call::call(shared, payload, plan, &options).await {
        Ok(Reply::One(value)) => Inquiry::Answered(value),
        Err(error) => match error.kind() {
            ErrorKind::Server(said) if said.code() == "NOPERM" => Inquiry::Refused,
            _ => Inquiry::Failed,
        },
        Ok(_) => Inquiry::Failed,
    }
}

impl Discovery {
    /// Notes whether the server says of itself what this command asks. That it does not is told
    /// once.
    fn note_answer(&self, command: &'static str, answer: &Inquiry) {
        let newly_refused = match answer {
            Inquiry::Answered(_) => {
                self.not_allowed.lock().remove(command);
                false
            }
            Inquiry::Refused => self.not_allowed.lock().insert(command),
            Inquiry::Failed => false,
        };
        // Told without the lock: whoever listens may ask the client.
        if newly_refused {
            tracing::warn!(
                command,
                "not allowed to this user: lag, and what a failover costs, are not known"
            );
        }
    }
}

fn text(reply: &Value) -> Option<String> {
    match reply {
        Value::BulkString(text) => String::from_utf8(text.clone()).ok(),
        Value::VerbatimString { text, .. } => Some(text.clone()),
        _ => None,
    }
}

fn tell(shared: &Shared, discovery: &Discovery, cost: impl Fn(&Switch) -> FailoverHistory) {
    let switches: VecDeque<Switch> = std::mem::take(&mut *discovery.untold.lock());
    for switch in switches {
        let history = cost(&switch);
        let kind = EventKind::FailedOver {
            from: switch.from.to_string(),
            to: switch.to.primary.to_string(),
            epoch: switch.to.epoch,
            votes: switch.votes,
            voters: switch.voters,
            history,
        };
        shared.hub.emit(0, kind);
    }
}

fn cost(
    marks: Option<&Watermarks>,
    new: Option<&InfoReplication>,
    switch: &Switch,
) -> FailoverHistory {
    let Some(marks) = marks else {
        return FailoverHistory::Unknown;
    };
    match marks.judge(new, switch.acknowledged) {
        History::Same { certain, at_risk } => {
            let ago = |at: Instant| clock::as_ms(switch.at.saturating_duration_since(at));
            FailoverHistory::Same {
                certain_ms_ago: certain.map(|mark| ago(mark.at)),
                at_risk,
            }
        }
        History::Forked => FailoverHistory::Forked,
        History::Unknown => FailoverHistory::Unknown,
    }
}
