//! Subjects for the lab's own tests: the lab's plain one over a table in memory, and a sturdy one
//! that goes to that table when Redis fails. Neither is a model of resilience; they show that the
//! lab sees what is there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use steadfast_drill::hand_built::HandBuilt;
use steadfast_drill::plain::{Plain, Table};
use steadfast_drill::subject::{
    Answer, Connection, DatabaseFault, Endpoint, Facts, Failure, Role, SetUpError, Source, Subject,
    SubjectFactory,
};

/// Rows in memory that can be broken as a database can.
#[derive(Clone)]
pub(crate) struct Rows(Arc<Mutex<(HashMap<u64, u64>, DatabaseFault)>>);

impl Rows {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new((
            HashMap::new(),
            DatabaseFault::Healthy,
        ))))
    }

    async fn pass(&self) -> Result<(), Failure> {
        let fault = self.0.lock().unwrap().1;
        match fault {
            DatabaseFault::Healthy => Ok(()),
            DatabaseFault::Slow(by) => {
                tokio::time::sleep(by).await;
                Ok(())
            }
            DatabaseFault::Down => Err(Failure { kind: "database" }),
        }
    }
}

impl Table for Rows {
    fn create(&self, _keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn version(&self, key: u64) -> BoxFuture<'_, Result<u64, Failure>> {
        async move {
            self.pass().await?;
            Ok(self.0.lock().unwrap().0.get(&key).copied().unwrap_or(0))
        }
        .boxed()
    }

    fn raise(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            self.pass().await?;
            let rows = &mut self.0.lock().unwrap().0;
            let row = rows.entry(key).or_default();
            *row = version.max(*row);
            Ok(())
        }
        .boxed()
    }

    fn fault(&self, fault: DatabaseFault) {
        self.0.lock().unwrap().1 = fault;
    }
}

/// Goes to the table when Redis fails, and puts up with a Redis that missed a write.
pub(crate) struct Sturdy {
    plain: Plain,
    rows: Rows,
}

impl Subject for Sturdy {
    fn warm(&self, keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        self.plain.warm(keys)
    }

    fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
        async move {
            match tokio::time::timeout(Duration::from_millis(300), Subject::read(&self.plain, key))
                .await
            {
                Ok(Ok(answer)) => Ok(answer),
                _ => {
                    let version = self.rows.version(key).await?;
                    Ok(Answer {
                        source: Source::Database,
                        version,
                        age: Duration::ZERO,
                        stale: Some(false),
                    })
                }
            }
        }
        .boxed()
    }

    fn write(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        async move {
            let _ = tokio::time::timeout(
                Duration::from_millis(300),
                Subject::write(&self.plain, key, version),
            )
            .await;
            self.rows.raise(key, version).await
        }
        .boxed()
    }

    fn database_fault(&self, fault: DatabaseFault) {
        self.rows.fault(fault);
    }

    fn facts(&self) -> Facts {
        self.plain.facts()
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        self.plain.shutdown()
    }
}

/// Sturdy ones to be judged, plain ones as the control.
pub(crate) struct Factory;

impl SubjectFactory for Factory {
    fn start(
        &self,
        role: Role,
        endpoint: Endpoint,
    ) -> BoxFuture<'_, Result<Box<dyn Subject>, SetUpError>> {
        async move {
            let rows = Rows::new();
            let plain = Plain::start(&endpoint, Box::new(rows.clone()))?;
            Ok(match role {
                Role::Resilient => Box::new(Sturdy { plain, rows }) as Box<dyn Subject>,
                Role::Plain => Box::new(plain),
                Role::HandBuilt => Box::new(HandBuilt::start(&endpoint, Box::new(rows))?),
            })
        }
        .boxed()
    }
}

/// As sturdy, and never believes again what it holds: each answer says that it is stale.
struct Doubtful(Sturdy);

impl Subject for Doubtful {
    fn warm(&self, keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        self.0.warm(keys)
    }

    fn read(&self, key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
        let answer = self.0.read(key);
        answer
            .map(|answer| {
                answer.map(|answer| Answer {
                    stale: Some(true),
                    ..answer
                })
            })
            .boxed()
    }

    fn write(&self, key: u64, version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        self.0.write(key, version)
    }

    fn database_fault(&self, fault: DatabaseFault) {
        self.0.database_fault(fault);
    }

    fn facts(&self) -> Facts {
        self.0.facts()
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        self.0.shutdown()
    }
}

/// Doubtful ones to be judged, plain ones as the control.
pub(crate) struct DoubtfulFactory;

impl SubjectFactory for DoubtfulFactory {
    fn start(
        &self,
        role: Role,
        endpoint: Endpoint,
    ) -> BoxFuture<'_, Result<Box<dyn Subject>, SetUpError>> {
        async move {
            if role != Role::Resilient {
                return Factory.start(role, endpoint).await;
            }
            let rows = Rows::new();
            let plain = Plain::start(&endpoint, Box::new(rows.clone()))?;
            Ok(Box::new(Doubtful(Sturdy { plain, rows })) as Box<dyn Subject>)
        }
        .boxed()
    }
}

/// Answers every call at once, or never.
pub(crate) struct Null {
    pub(crate) answers: bool,
}

impl Subject for Null {
    fn warm(&self, _keys: u64) -> BoxFuture<'_, Result<(), SetUpError>> {
        std::future::ready(Ok(())).boxed()
    }

    fn read(&self, _key: u64) -> BoxFuture<'_, Result<Answer, Failure>> {
        if !self.answers {
            return std::future::pending().boxed();
        }
        let answer = Answer {
            source: Source::Memory,
            version: 0,
            age: Duration::ZERO,
            stale: Some(false),
        };
        std::future::ready(Ok(answer)).boxed()
    }

    fn write(&self, _key: u64, _version: u64) -> BoxFuture<'_, Result<(), Failure>> {
        std::future::ready(Ok(())).boxed()
    }

    fn database_fault(&self, _fault: DatabaseFault) {}

    fn facts(&self) -> Facts {
        Facts {
            connection: Connection::Ready,
            ..Facts::default()
        }
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        std::future::ready(()).boxed()
    }
}
