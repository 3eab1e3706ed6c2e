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

/// The last sample. Before the first, nothing is known and nothing is wrong.
#[derive(Debug, Default)]
pub(crate) struct Vitals {
    cpu: AtomicU64,
    memory: AtomicU64,
    resident: AtomicU64,
}

impl Vitals {
    /// Processors in use, in percent of all.
    pub(crate) fn cpu_percent(&self) -> f64 {
        f64::from_bits(self.cpu.load(Relaxed))
    }

    /// Memory in use, in percent of what there is (of the control group's limit where one is set).
    pub(crate) fn memory_percent(&self) -> f64 {
        f64::from_bits(self.memory.load(Relaxed))
    }

    /// Memory of this process.
    pub(crate) fn resident_bytes(&self) -> u64 {
        self.resident.load(Relaxed)
    }

    pub(crate) fn checks(&self) -> [(&'static str, Check); 2] {
        let judged = |percent: f64, warn: f64| {
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

/// Samples for ever, in a thread's time that may block.
pub(crate) async fn sample(vitals: std::sync::Arc<Vitals>, every: Duration) {
    let Ok(mut system) = System::new() else {
        tracing::warn!("the system does not tell its use of processors and memory");
        return;
    };
    let pid = Pid::from_u32(std::process::id());
    let mut ticker = tokio::time::interval(every);
    ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
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
            Err(_) => return,
        }
        let resident = system.process(pid).map_or(0, sysinfo::Process::memory);
        vitals.store(
            f64::from(system.global_cpu_usage()),
            memory(&system),
            resident,
        );
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
        return 0.0;
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
        assert_eq!(statuses(), [Status::Healthy; 2]);
        vitals.store(80.0, 84.9, 1);
        assert_eq!(statuses(), [Status::Degraded, Status::Healthy]);
        vitals.store(79.9, 85.0, 1);
        assert_eq!(statuses(), [Status::Healthy, Status::Degraded]);
    }
}
