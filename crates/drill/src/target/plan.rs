//! What a scenario breaks, played on the wires between an application and the servers that it uses.

use std::time::Duration;

use super::TargetError;
use crate::fault::{Direction, Down, Latency, RespError, Stall, Toxic};
use crate::scenario::{Fault, Phase, Scenario, Wire};

/// Which step, and which time of it.
pub(super) type Id = (usize, usize);

/// Something to be broken, or to be healed.
pub(super) struct Action {
    pub(super) at: Duration,
    /// What is broken; nothing if it is healed.
    pub(super) begins: Option<Toxic>,
    pub(super) wire: Wire,
    pub(super) id: Id,
    pub(super) name: &'static str,
}

/// What is broken on which wire, and when, in the order of its times.
pub(super) fn plan(scenario: &Scenario, has_database: bool) -> Result<Vec<Action>, TargetError> {
    let start = scenario.phases.spans()[Phase::Fault as usize].1.start;
    let mut actions = Vec::new();
    for (step, planned) in scenario.steps.iter().enumerate() {
        let wire = planned.wire();
        if wire == Wire::Database && !has_database {
            return Err(TargetError::NoDatabase {
                fault: planned.fault.name(),
            });
        }
        let toxic = on_the_wire(&planned.fault)?;
        for (time, span) in planned.spans().enumerate() {
            let (id, name) = ((step, time), planned.fault.name());
            for (at, begins) in [(span.start, Some(toxic.clone())), (span.end, None)] {
                actions.push(Action {
                    at: start + at,
                    begins,
                    wire,
                    id,
                    name,
                });
            }
        }
    }
    actions.sort_by_key(|action| (action.at, action.begins.is_some()));
    Ok(actions)
}

/// What a client sees of a fault, as a fault of the wire.
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
