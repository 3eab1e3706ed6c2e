//! Several servers in virtual time, under histories of what goes wrong, each checked for what must
//! never happen.
//!
//! Real servers show what really happens, and only what happens often. Here a history takes
//! milliseconds, and each seed is another one. Servers, network and sentinels are models; whom to
//! believe, what to repeat and which answer counts is decided by the code under test. The same seed
//! gives the same history: `STEADFAST_SIMULATED_SEED=n` runs that one alone,
//! `STEADFAST_SIMULATED_SEEDS=n` so many.
//!
//! A check that cannot fail proves nothing. So each rule is broken once ([`failover::Broken`],
//! [`migration::Broken`], [`scan::Broken`]), and some history has to notice.

mod events;
mod failover;
mod migration;
mod scan;

/// The seeds to run: so many usually.
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let number = |name| std::env::var(name).ok()?.parse().ok();
    match number("STEADFAST_SIMULATED_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("STEADFAST_SIMULATED_SEEDS").unwrap_or(usual),
    }
}

/// What a command does. Each write leaves its number behind, so that it can be seen how often it
/// ran, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Incr,
    Set,
    Get,
}

impl Kind {
    fn effect(self) -> steadfast_core::command::Effect {
        use steadfast_core::command::Effect;
        match self {
            Self::Incr => Effect::Accumulating,
            Self::Set => Effect::LastWins,
            Self::Get => Effect::Read,
        }
    }
}

/// How a command ended for its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Done,
    NotSent,
    Rejected,
    Unknown,
}

/// A command that one caller made. Its number is its place in the order in which they were
/// submitted.
#[derive(Clone, Debug)]
struct Made {
    key: u32,
    /// Another key that it has, of the same slot.
    other: Option<u32>,
    kind: Kind,
    submitted: u64,
    /// How it ended, and when.
    ended: Option<(Ended, u64)>,
}

/// What must hold of the order in which writes of one key stand in the data. Answers with the first
/// thing that does not.
///
/// - No accumulating command stands twice.
/// - What was said to be not sent or rejected does not stand at all.
/// - What was done stands in the order in which it was submitted.
/// - What had ended before another was submitted does not stand behind it: nothing comes out of its
///   grave.
fn check_data(made: &[Made], data: &[u32]) -> Result<(), String> {
    let mut last_of_key = std::collections::BTreeMap::<u32, Vec<u32>>::new();
    for &op in data {
        last_of_key
            .entry(made[op as usize].key)
            .or_default()
            .push(op);
    }
    for (key, ops) in last_of_key {
        check_key(made, key, &ops)?;
    }
    Ok(())
}

/// The same of what was written to one key.
fn check_key(made: &[Made], key: u32, ops: &[u32]) -> Result<(), String> {
    let mut behind: Vec<u32> = Vec::new();
    for (at, &op) in ops.iter().enumerate() {
        let command = &made[op as usize];
        let again = ops[at + 1..].contains(&op);
        if again && command.kind == Kind::Incr {
            return Err(format!("applied twice: {op} of key {key}"));
        }
        if let Some((ended @ (Ended::NotSent | Ended::Rejected), _)) = command.ended {
            return Err(format!("{ended:?} and applied: {op} of key {key}"));
        }
        if again {
            continue;
        }
        for &earlier in &behind {
            let other = &made[earlier as usize];
            let both_done = [command, other]
                .iter()
                .all(|command| matches!(command.ended, Some((Ended::Done, _))));
            if both_done && op < earlier {
                return Err(format!("out of order: {op} behind {earlier} of key {key}"));
            }
            if command.ended.is_some_and(|(_, at)| at < other.submitted) {
                return Err(format!(
                    "from the grave: {op} behind {earlier} of key {key}"
                ));
            }
        }
        behind.push(op);
    }
    Ok(())
}
