//! Resident memory of a process in which one client serves 512 callers: a process for each, so that
//! none pays for another.

use std::time::Duration;

use crate::subjects::{Kind, SetUpError, Setup};
use crate::throughput::turn;
use crate::workloads::Workload;

/// The argument by which this program is asked to be that process.
pub const ARGUMENT: &str = "--memory-of";

#[derive(Clone, Copy, Debug)]
pub struct Memory {
    pub kind: Kind,
    /// KiB that connecting and serving added.
    pub added: u64,
}

/// In a process of its own.
pub async fn measure(kind: Kind, url: &str) -> Option<Memory> {
    let output = tokio::process::Command::new(std::env::current_exe().ok()?)
        .args([ARGUMENT, kind.name(), url])
        .output()
        .await
        .ok()?;
    let added = String::from_utf8(output.stdout).ok()?.trim().parse().ok()?;
    Some(Memory { kind, added })
}

/// That process: prints what it grew by.
pub async fn be_measured(name: &str, url: &str) -> Result<(), SetUpError> {
    let kind = Kind::ALL
        .into_iter()
        .find(|kind| kind.name() == name)
        .ok_or("no such client")?;
    let before = resident()?;
    let subject = kind.connect(url, Setup::AsItComes).await?;
    turn(&subject, Workload::GET, 512, Duration::from_millis(400)).await?;
    println!("{}", resident()?.saturating_sub(before));
    Ok(())
}

/// KiB of this process in memory.
fn resident() -> Result<u64, SetUpError> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .ok_or("no VmRSS in /proc/self/status")?;
    Ok(line
        .split_whitespace()
        .nth(1)
        .ok_or("VmRSS without a number")?
        .parse()?)
}
