//! The application in small whose data are in Redis itself, for drills in which the primary moves:
//! this service's client on its defaults, without a cache.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use redis::{Cmd, FromRedisValue};
use steadfast::{Certainty, Client, ConnectionState};
use steadfast_drill::ledger::{LedgerWrite, name_of};
use steadfast_drill::subject::{
    Answer, DatabaseFault, Endpoint, Facts, Failure, SetUpError, Subject,
};

use super::facts::facts_of;

/// The client on its defaults.
pub(super) struct Keeper {
    client: Client,
    answered: AtomicU64,
    failed: AtomicU64,
}

impl Keeper {
    pub(super) fn start(endpoint: &Endpoint) -> Result<Self, SetUpError> {
        let failed = |error: &dyn std::fmt::Display| SetUpError(error.to_string());
        let builder = Client::builder(&endpoint.redis_url).map_err(|error| failed(&error))?;
        let client = builder.name("steadfast-drill").build();
        Ok(Self {
            client: client.map_err(|error| failed(&error))?,
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let answer = self.client.send(command).await.map_err(|error| Failure {
            kind: match error.certainty() {
                Certainty::NotSent => "not_sent",
                Certainty::Rejected => "rejected",
                Certainty::Unknown => "unknown",
            },
        });
        let counter = match answer {
            Ok(_) => &self.answered,
            Err(_) => &self.failed,
        };
        counter.fetch_add(1, Relaxed);
        redis::from_redis_value(answer?).map_err(|_| Failure { kind: "value" })
    }

    async fn write(&self, key: u64, version: u64) -> Result<(), Failure> {
        let written: redis::Value = self.ask(&LedgerWrite::of(key, version).command()).await?;
        drop(written);
        Ok(())
    }
}

impl Subject for Keeper {
    fn warm(&self, _keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        async move {
            while self.client.state() != ConnectionState::Ready {
                // A change between the look and the wait is seen at the next look.
                let changed = self.client.changed();
                let _ = tokio::time::timeout(Duration::from_millis(50), changed).await;
            }
            Ok(())
        }
        .boxed()
    }

    fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
        async move {
            let version = self.ask(redis::cmd("GET").arg(name_of(key))).await?;
            Ok(Answer::of_redis_itself(version))
        }
        .boxed()
    }

    fn write(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        self.write(key, version).boxed()
    }

    fn database_fault(&self, _fault: DatabaseFault) {}

    fn facts(&self) -> Facts {
        Facts {
            redis_ok: self.answered.load(Relaxed),
            redis_failed: self.failed.load(Relaxed),
            ..facts_of(&self.client.status())
        }
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        async move {
            let _ = self.client.close(Duration::from_secs(1)).await;
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use steadfast_drill::report::{Report, html, summary};
    use steadfast_drill::run::{RunOptions, run};
    use steadfast_drill::scenario::Scenario;

    use crate::drills::Subjects;

    #[expect(clippy::print_stderr, reason = "a test that skips its claim says so")]
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn d1_t5_t7_slots_that_move_are_felt_by_nobody_and_a_shard_that_is_down_by_its_own_callers()
     {
        let scenario = Scenario::parse(
            "name = 'test'\nstore = 'cluster'\n\
             phases = { warm_up = '300ms', baseline = '500ms', fault = '5s', recovery = '1s', recovered = '500ms' }\n\
             load = { rate = 200, keys = 20, writes = 0.5 }\n\
             [[steps]]\nfault = 'slots_moving'\nfor = '2s'\n\
             [[steps]]\nfault = 'shard_down'\nat = '3s'\nfor = '1s'\n",
        );
        let scenario = scenario.unwrap();
        // On a machine that lags behind, nodes hold others for failed by themselves: what such a
        // run says of the other shards, another has to say.
        let mut runs = 0;
        let report = loop {
            runs += 1;
            let options = RunOptions {
                control: true,
                ..RunOptions::default()
            };
            let report = run(&scenario, &Subjects, options).await.unwrap();
            assert!(report.untouched.is_empty(), "{:?}", report.untouched);
            let ours = report.ledger.unwrap();
            let shards = ours.shards.unwrap();
            assert_eq!((ours.lost, ours.twice), (0, 0), "{ours:?}");
            assert!(
                ours.acknowledged > 100 && shards.failed_there > 0,
                "{ours:?}"
            );
            assert!(shards.discoveries.is_some_and(|seen| seen > 0), "{ours:?}");
            if shards.failed_elsewhere == 0 {
                break report;
            }
            assert!(report.load.late > 0, "{ours:?}");
            if runs == 3 {
                eprintln!("SKIPPED: three runs with late calls, and failures elsewhere: {ours:?}");
                break report;
            }
        };
        let theirs = report.control.as_ref().unwrap().ledger.unwrap();
        assert!(theirs.acknowledged > 100, "{theirs:?}");
        let page = html::render(&report);
        assert!(page.contains("Calls of other shards that failed"), "{page}");
        let table = summary::markdown(std::slice::from_ref(&report));
        assert!(table.contains("| discoveries |"), "{table}");
    }

    /// Breaks something for that long, and leaves time until all is found again.
    async fn report_of(fault: &str, lasts: &str) -> Report {
        let scenario = Scenario::parse(&format!(
            "name = 'test'\nstore = 'sentinel'\n\
             phases = {{ warm_up = '300ms', baseline = '500ms', fault = '{lasts}', recovery = '4s', recovered = '1s' }}\n\
             load = {{ rate = 200, keys = 20, writes = 0.5 }}\n\
             [[steps]]\nfault = '{fault}'\n"
        ));
        let options = RunOptions {
            control: true,
            hand_built: true,
            ..RunOptions::default()
        };
        run(&scenario.unwrap(), &Subjects, options).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn d1_t18_in_a_split_brain_nothing_is_lost_once_another_primary_is_named_but_by_the_control()
     {
        // Time for a second election, should the first one fail, which the sentinels hold six
        // seconds after it.
        let report = report_of("split_brain", "16s").await;
        assert!(report.untouched.is_empty(), "{:?}", report.untouched);
        let (ours, control) = (report.ledger.unwrap(), report.control.as_ref().unwrap());
        let theirs = control.ledger.unwrap();
        assert_eq!((ours.failovers, theirs.failovers), (1, 1));
        assert_eq!((ours.lost_late, ours.twice), (0, 0), "{ours:?}");
        assert!(
            ours.acknowledged > 200 && ours.back_ms.is_some(),
            "{ours:?}"
        );
        // It holds on to a primary that answers, as nobody tells it.
        assert!(theirs.lost_late > 20, "{theirs:?}");
        assert!(report.hand_built.is_none());
        let page = html::render(&report);
        assert!(page.contains("Lost after the switch"), "{page}");
        let table = summary::markdown(std::slice::from_ref(&report));
        assert!(table.contains("| acknowledged writes lost |"), "{table}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn d1_sentinels_that_are_away_are_felt_by_nobody() {
        let report = report_of("sentinels_away", "3s").await;
        let ours = report.ledger.unwrap();
        assert_eq!(
            (ours.failovers, ours.lost, ours.failed),
            (0, 0, 0),
            "{ours:?}"
        );
    }
}
