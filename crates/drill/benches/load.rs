//! How many calls a second the load generator holds against a subject that answers at once: the
//! highest rate at which, for a second, no arrival was skipped and none started late. Past that it
//! says so, and so does the report of a drill (`load` in `report.json`, a line below the table):
//! skipped arrivals, or calls that started more than 50 ms after they were due. A drill whose rate
//! comes near the figure measures the generator.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use steadfast_drill::load::{Lane, drive};
use steadfast_drill::scenario::{Arrivals, Phase, Scenario};
use steadfast_drill::subject::{
    Answer, DatabaseFault, Facts, Failure, SetUpError, Source, Subject,
};
use tokio::runtime::Runtime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    tell("calls a second    started    skipped       late     p50     p99     max");
    let mut held = 0.0;
    let mut rate = 10e3;
    while let Seen::Held = trial(&runtime, rate) {
        (held, rate) = (rate, rate * 2.0);
    }
    // The truth lies between; five halvings find it to some 3 %.
    let mut lost = rate;
    for _ in 0..5 {
        let middle = f64::midpoint(held, lost);
        match trial(&runtime, middle) {
            Seen::Held => held = middle,
            Seen::Lost => lost = middle,
        }
    }
    tell(&format!(
        "\nthe load generator holds {held:.0} calls a second; past that it says that arrivals were skipped or late"
    ));
}

enum Seen {
    Held,
    Lost,
}

/// A second of that rate, as a scenario with its defaults has it: 1 024 calls at once at most.
fn trial(runtime: &Runtime, rate: f64) -> Seen {
    let text = "name = 'null'\nphases = { warm_up = '0s', baseline = '1s', fault = '0s', recovery = '0s', recovered = '1s' }\n";
    let mut scenario = Scenario::parse(text).expect("the text above is one");
    scenario.load.arrivals = Arrivals::Open { rate };
    let second = Duration::from_secs(1);
    runtime.block_on(async {
        let lane = Lane::new(
            Arc::new(Null),
            Instant::now(),
            scenario.phases,
            Duration::ZERO,
        );
        let lane = Arc::new(lane);
        let never = CancellationToken::new();
        drive(lane.clone(), scenario.load, second, 1, never).await;
        lane.record(|record| {
            let late = record.started_late().calls;
            let counts = record.counts(Phase::Baseline);
            let micros =
                |quantile| Duration::from_micros(counts.latency.value_at_quantile(quantile));
            tell(&format!(
                "{rate:>14.0} {:>10} {:>10} {late:>10} {:>7.1?} {:>7.1?} {:>7.1?}",
                counts.calls(),
                counts.skipped,
                micros(0.5),
                micros(0.99),
                micros(1.0),
            ));
            let whole = counts.calls() + 1 >= rate as u64;
            if counts.skipped == 0 && late == 0 && whole {
                Seen::Held
            } else {
                Seen::Lost
            }
        })
    })
}

#[expect(clippy::print_stdout, reason = "the figures are what this is for")]
fn tell(line: &str) {
    println!("{line}");
}

/// Answers at once.
struct Null;

impl Subject for Null {
    fn warm(&self, _keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        ready(Ok(())).boxed()
    }

    fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
        let answer = Answer {
            source: Source::Memory,
            version: 0,
            age: Duration::ZERO,
            stale: Some(false),
        };
        ready(Ok(black_box((key, answer)).1)).boxed()
    }

    fn write(&self, _key: u64, _version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        ready(Ok(())).boxed()
    }

    fn database_fault(&self, _fault: DatabaseFault) {}

    fn facts(&self) -> Facts {
        Facts::default()
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        ready(()).boxed()
    }
}
