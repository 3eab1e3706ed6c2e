//! The policies around something that is no Redis: a printer that jams. They read no clock, so this
//! program brings one, and can make an hour pass in no time.
//!
//!     cargo run -p steadfast-core --example policies
//!
//! Prints each failure, what the breaker does about it, how long the retry pauses, and at last
//! `printed`. Programs that have a clock and a runtime take the `Retry` of the crate `steadfast`.

use std::time::{Duration, Instant};

use steadfast_core::policy::breaker::{Admission, Breaker, BreakerConfig, Outcome};
use steadfast_core::policy::retry::{RetryPolicy, RetryState, Step};
use steadfast_core::policy::{Backoff, InvalidSetting, Stop};

struct Printer {
    jams: u32,
}

impl Printer {
    fn print(&mut self) -> Result<(), &'static str> {
        match self.jams.checked_sub(1) {
            Some(left) => {
                self.jams = left;
                Err("paper jam")
            }
            None => Ok(()),
        }
    }
}

#[expect(clippy::print_stdout, reason = "an example shows what it does")]
#[expect(
    clippy::disallowed_methods,
    reason = "a beginning; from there on it counts itself"
)]
fn main() -> Result<(), InvalidSetting> {
    let began = Instant::now();
    let mut now = began;
    let mut printer = Printer { jams: 3 };

    // Opens after two failures in a row, lets attempts through after a while, and closes when one
    // of them succeeds.
    let config = BreakerConfig {
        consecutive_failures: Some(2),
        probe_successes: 1,
        ..BreakerConfig::default()
    };
    let mut breaker = Breaker::new(config, now)?;

    // 20 ms, 40, 80 … up to a second, ten times or a minute, whatever ends first.
    let backoff = Backoff::exponential(Duration::from_millis(20), Duration::from_secs(1));
    let stop = Stop::after_attempts(10).or(Stop::after_delay(Duration::from_secs(60)));
    let policy = RetryPolicy::new(backoff, stop);
    let mut retry = RetryState::new(policy, now, None, fastrand::Rng::with_seed(1));

    loop {
        let permit = match breaker.try_acquire(now) {
            Ok(Admission::Now(permit)) => permit,
            Ok(Admission::Delay { until, permit }) => {
                now = until;
                permit
            }
            Err(refused) => {
                println!("refused for {} ms", refused.retry_after.as_millis());
                now += refused.retry_after;
                continue;
            }
        };
        let result = printer.print();
        let outcome = match result {
            Ok(()) => Outcome::Success,
            Err(_) => Outcome::Failure,
        };
        if let Some(transition) = breaker.record(permit, outcome, now) {
            println!("the breaker is {:?}", transition.to);
        }
        let Err(error) = result else {
            println!("printed");
            return Ok(());
        };
        match retry.next(now) {
            Step::Pause(pause) => {
                println!("{error}: again in {} ms", pause.as_millis());
                now += pause;
            }
            Step::GiveUp(why) => {
                println!("{error}: given up, {why:?}");
                return Ok(());
            }
        }
    }
}
