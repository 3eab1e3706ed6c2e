//! The machine's own state, sampled in the background, because asking the system for it takes
//! longer than a health check may.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use crate::health::{Check, Status};

/// Use of the processors from which it is told, in percent.
const CPU_WARN: f64 = 80.0;
/// Use of the memory from which it is told, in percent.
const MEMORY_WARN: f64 = 85.0;

/// The last sample.
#[derive(Debug)]
pub(crate) struct Vitals {
    /// NaN while it is not known.
    cpu: AtomicU64,
    /// As the other.
    memory: AtomicU64,
    resident: AtomicU64,
}

impl Default for Vitals {
    fn default() -> Self {
        let unknown = || AtomicU64::new(f64::NAN.to_bits());
        Self {
            cpu: unknown(),
            memory: unknown(),
            resident: AtomicU64::new(0),
        }
    }
}

impl Vitals {
    /// Processors in use, in percent of all; `None` while it is not known.
    pub(crate) fn cpu_percent(&self) -> Option<f64> {
        known(&self.cpu)
    }

    /// Memory in use, in percent of what there is (of the control group's limit where one is set);
    /// `None` while it is not known.
    pub(crate) fn memory_percent(&self) -> Option<f64> {
        known(&self.memory)
    }

    /// Memory of this process.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.resident.load(Relaxed)
    }

    pub(crate) fn checks(&self) -> [(&'static str, Check); 2] {
        let judged = |percent: Option<f64>, warn: f64| {
            let Some(percent) = percent else {
                return Check::new(Status::Degraded, "not known");
            };
            let status = if percent >= warn {
                Status::Degraded
            } else {
                Status::Healthy
            };
            Check::new(
                status,
                format!("{percent:.0} % in use, warns at {warn:.0} %"),
            )
        };
        [
            ("cpu", judged(self.cpu_percent(), CPU_WARN)),
            ("memory", judged(self.memory_percent(), MEMORY_WARN)),
        ]
    }

    fn store(&self, cpu: f64, memory: f64, resident: u64) {
        self.cpu.store(cpu.to_bits(), Relaxed);
        self.memory.store(memory.to_bits(), Relaxed);
        self.resident.store(resident, Relaxed);
    }
}

fn known(share: &AtomicU64) -> Option<f64> {
    Some(f64::from_bits(share.load(Relaxed))).filter(|share| share.is_finite())
}

/// Samples for ever, in a thread's time that may block.
pub(crate) async fn sample(vitals: std::sync::Arc<Vitals>, every: Duration) {
    let Ok(mut system) = System::new() else {
        tracing::warn!("the system does not tell its use of processors and memory");
        return;
    };
    let pid = Pid::from_u32(std::process::id());
    let mut ticker = tokio::time::interval(every);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    // The use of processors is known between two samples.
    let mut cpu_known = false;
    loop {
        ticker.tick().await;
        let sampled = tokio::task::spawn_blocking(move || {
            system.refresh_cpu_usage();
            system.refresh_memory();
            let _ = system.refresh_processes_specifics(
                ProcessesToUpdate::Some(&[pid]),
                false,
                ProcessRefreshKind::nothing().with_memory(),
            );
            system
        });
        match sampled.await {
            Ok(sampled) => system = sampled,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => return,
            },
        }
        let resident = system.process(pid).map_or(0, sysinfo::Process::memory);
        let cpu = match cpu_known {
            true => f64::from(system.global_cpu_usage()),
            false => f64::NAN,
        };
        cpu_known = true;
        vitals.store(cpu, memory(&system), resident);
    }
}

fn memory(system: &System) -> f64 {
    let (used, total) = match system.cgroup_limits() {
        // Not what the group holds in all: files that were read are in it, and make room as soon as
        // it is needed.
        Some(limits) if limits.total_memory > 0 => (limits.rss, limits.total_memory),
        _ => (
            system
                .total_memory()
                .saturating_sub(system.available_memory()),
            system.total_memory(),
        ),
    };
    if total == 0 {
        return f64::NAN;
    }
    used as f64 / total as f64 * 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s3_a_machine_at_its_limits_is_degraded_and_one_below_is_not() {
        let vitals = Vitals::default();
        let statuses = || vitals.checks().map(|(_, check)| check.status);
        assert_eq!(statuses(), [Status::Degraded; 2], "nothing is known yet");
        assert!(
            vitals
                .checks()
                .iter()
                .all(|(_, check)| check.message == "not known")
        );
        assert_eq!(
            (vitals.cpu_percent(), vitals.memory_percent()),
            (None, None)
        );
        vitals.store(f64::NAN, 10.0, 1);
        assert_eq!(statuses(), [Status::Degraded, Status::Healthy]);
        vitals.store(80.0, 84.9, 1);
        assert_eq!(statuses(), [Status::Degraded, Status::Healthy]);
        vitals.store(79.9, 85.0, 1);
        assert_eq!(statuses(), [Status::Healthy, Status::Degraded]);
    }
}
