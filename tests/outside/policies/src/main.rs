//! A program without a runtime, a socket or Redis: it has only the policies of `steadfast-core`,
//! and brings its own clock, here one that jumps.

use std::time::{Duration, Instant};

use steadfast_core::policy::breaker::{Admission, Breaker, BreakerConfig, Outcome};
use steadfast_core::policy::retry::{RetryPolicy, RetryState, Step};
use steadfast_core::policy::{Backoff, InvalidSetting, Stop};

/// A printer that jams three times.
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

fn main() -> Result<(), InvalidSetting> {
    let mut now = Instant::now();
    let began = now;
    let mut printer = Printer { jams: 3 };
    let in_a_row = BreakerConfig {
        consecutive_failures: Some(2),
        ..BreakerConfig::default()
    };
    let mut breaker = Breaker::new(in_a_row, now)?;
    let backoff = Backoff::exponential(Duration::from_millis(100), Duration::from_secs(1));
    let stop = Stop::after_attempts(10).or(Stop::after_delay(Duration::from_secs(60)));
    let mut retry = RetryState::new(
        RetryPolicy::new(backoff, stop),
        now,
        None,
        fastrand::Rng::with_seed(1),
    );
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
        match printer.print() {
            Ok(()) => {
                breaker.record(permit, Outcome::Success, now);
                println!("printed");
                break;
            }
            Err(error) => {
                if let Some(transition) = breaker.record(permit, Outcome::Failure, now) {
                    println!("{error}: {:?}", transition.to);
                }
                match retry.next(now) {
                    Step::Pause(pause) => now += pause,
                    Step::GiveUp(why) => {
                        println!("gave up: {why:?}");
                        break;
                    }
                }
            }
        }
    }
    assert!(now - began < Duration::from_secs(60));
    Ok(())
}
