//! A scenario's faults, played on the wires between an application and the servers that it uses.

use std::time::Duration;

use super::TargetError;
use crate::fault::{Direction, Down, Latency, RespError, Stall, Toxic};
use crate::scenario::{Fault, Scenario, Wire};
use crate::timeline::{self, Id, Moment};

/// Something to be broken, or to be healed.
pub(super) struct Action {
    pub(super) at: Duration,
    /// The fault that begins; nothing if it is healed.
    pub(super) begins: Option<Toxic>,
    pub(super) wire: Wire,
    pub(super) id: Id,
    pub(super) name: &'static str,
}

/// Returns which fault begins and ends on which wire, and when, in the order of its times.
pub(super) fn plan(scenario: &Scenario, has_database: bool) -> Result<Vec<Action>, TargetError> {
    let mut toxics = Vec::new();
    for step in &scenario.steps {
        if step.wire() == Wire::Database && !has_database {
            return Err(TargetError::NoDatabase {
                fault: step.fault.name(),
            });
        }
        toxics.push(on_the_wire(&step.fault)?);
    }
    let moments = timeline::moments_of(scenario).into_iter();
    let actions = moments.map(|Moment { at, begins, id }| {
        let step = &scenario.steps[id.0];
        Action {
            at,
            begins: begins.then(|| toxics[id.0].clone()),
            wire: step.wire(),
            id,
            name: step.fault.name(),
        }
    });
    Ok(actions.collect())
}

/// Returns what a client sees of a fault, as a fault of the wire.
pub(super) fn on_the_wire(fault: &Fault) -> Result<Toxic, TargetError> {
    Ok(match fault {
        Fault::Wire(toxic) => (**toxic).clone(),
        Fault::Crash | Fault::DatabaseDown => Toxic::new(Down {}),
        Fault::Freeze | Fault::Pause(_) => Toxic::new(Stall {}).direction(Direction::Both),
        Fault::Loading => Toxic::new(RespError::loading()),
        Fault::ReadOnly => Toxic::new(RespError::readonly()),
        Fault::OutOfMemory => Toxic::new(RespError::oom()),
        Fault::PasswordChanged | Fault::UserDeleted => Toxic::new(RespError::noauth()),
        Fault::DatabaseSlow(latency) => Toxic::new(Latency {
            latency: *latency,
            jitter: Duration::ZERO,
        })
        .direction(Direction::Downstream),
        other => {
            return Err(TargetError::NotOnTheWire {
                fault: other.name(),
            });
        }
    })
}
