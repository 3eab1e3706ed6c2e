//! All keys, whichever servers they lie on, while those come and go.
//!
//! A cursor belongs to one table of one process: taken to another, or to the same server after a
//! restart, it passes keys over, and nobody would know. So each answer is held against the run id
//! of its connection, and where that has changed the part of that server begins again. In a cluster
//! slots change hands besides: see [`steadfast_core::scan`].

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use futures_util::future::BoxFuture;
use redis::Value;
use steadfast_core::scan::{ClusterScan, ScanQuery, read_scan};
use steadfast_core::slot::SlotRange;

use super::Client;
use super::cluster::{Process, SlotScan, may_pass, unreadable};
use crate::call::plan::{Payload, one};
use crate::clock;
use crate::error::{Certainty, Error, ErrorKind};
use crate::link::liveness::Silence;
use crate::options::CallOptions;

/// A scan of all keys. From [`Client::scan_keys`].
///
/// ```no_run
/// use steadfast::ScanQuery;
///
/// # async fn example(client: steadfast::Client) -> Result<(), steadfast::Error> {
/// let mut carts = client.scan_keys(ScanQuery::matching("cart:*"));
/// while let Some(key) = carts.next().await {
///     println!("{}", String::from_utf8_lossy(&key?));
/// }
/// # Ok(()) }
/// ```
pub struct KeyScan {
    client: Client,
    query: ScanQuery,
    options: CallOptions,
    patience: Duration,
    /// Keys that have come and were not handed out yet.
    ready: VecDeque<Vec<u8>>,
    course: Course,
}

/// The state of a scan.
#[derive(Debug)]
enum Course {
    NotBegun,
    OneServer(OneServer),
    Cluster(Box<SlotScan>),
    Ended,
}

#[derive(Debug, Default)]
struct OneServer {
    cursor: u64,
    /// Whose cursor it is; `None` at the beginning.
    process: Option<Arc<str>>,
    /// The number of times that another process was met.
    begun_again: u32,
    failures: u32,
    silence: Silence,
}

/// Between rounds that have brought nothing, and between questions that failed.
const PAUSE: Duration = Duration::from_millis(500);
/// Between the first questions that fail.
const SHORT_PAUSE: Duration = Duration::from_millis(20);

impl Client {
    /// Goes through all keys that match the query, by a SCAN of each server that has some.
    ///
    /// Every key that is there from the beginning to the end comes at least once, also where slots
    /// change hands, servers restart or another primary takes over meanwhile; a key may come more
    /// than once. Where that cannot be had, the scan ends with an error: in a cluster
    /// [`ErrorKind::Uncovered`], which names the slots. A pattern with a hash tag (`{user:7}:*`)
    /// asks the owner of its slot only.
    pub fn scan_keys(&self, query: ScanQuery) -> KeyScan {
        KeyScan {
            client: self.clone(),
            query,
            options: CallOptions::new(),
            patience: PAUSE * ClusterScan::<u16>::ROUNDS,
            ready: VecDeque::new(),
            course: Course::NotBegun,
        }
    }
}

impl KeyScan {
    /// Sets how long the scan goes on while it gets no further: through an election, say. Default:
    /// 5 s. Each of its questions has the deadline of a call besides.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Sets other options for its questions.
    pub fn with(mut self, options: CallOptions) -> Self {
        self.options = options;
        self
    }

    /// Returns the next key; `None` at the end, and after an error.
    ///
    /// # Errors
    /// [`ErrorKind::Uncovered`] if keys may be missing, or the error of the server.
    ///
    /// # Cancellation
    /// Dropped, it loses no key: the next one goes on.
    pub async fn next(&mut self) -> Option<Result<Vec<u8>, Error>> {
        loop {
            if let Some(key) = self.ready.pop_front() {
                return Some(Ok(key));
            }
            // Of a type that is named, as in `Client::run`.
            let asked: BoxFuture<'_, _> = Box::pin(self.step());
            match asked.await {
                Ok(true) => {}
                Ok(false) => {
                    self.course = Course::Ended;
                    return None;
                }
                Err(error) => {
                    self.course = Course::Ended;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Returns the keys as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Vec<u8>, Error>> + Send {
        futures_util::stream::unfold(self, |mut scan| async move {
            let next = scan.next().await?;
            Some((next, scan))
        })
    }

    /// Asks once; false at the end.
    async fn step(&mut self) -> Result<bool, Error> {
        if matches!(self.course, Course::NotBegun) {
            self.course = match &self.client.inner.cluster {
                None => Course::OneServer(OneServer::default()),
                Some(_) => {
                    let rounds = self.patience.div_duration_f64(PAUSE).ceil().max(1.0);
                    let scan = SlotScan::new(&self.query, (rounds as u32, self.patience));
                    Course::Cluster(Box::new(scan))
                }
            };
        }
        match &mut self.course {
            Course::NotBegun | Course::Ended => Ok(false),
            Course::Cluster(scan) => {
                let Some(cluster) = &self.client.inner.cluster else {
                    return Ok(false);
                };
                let step = cluster.scan_on(scan, &self.query, &self.options, PAUSE);
                step.await.map(|keys| match keys {
                    Some(keys) => {
                        self.ready.extend(keys);
                        true
                    }
                    None => false,
                })
            }
            Course::OneServer(_) => self.ask_the_server().await,
        }
    }

    async fn ask_the_server(&mut self) -> Result<bool, Error> {
        let Course::OneServer(at) = &mut self.course else {
            return Ok(false);
        };
        let before = Process::of(&self.client);
        let scan = self.query.scan(at.cursor);
        let payload = Payload::Command(&scan);
        let answer = self.client.run(payload, &self.options).await.and_then(one);
        let failed = match answer {
            Err(error) => Some(error),
            Ok(_) if before.is_none() || before != Process::of(&self.client) => Some(replaced()),
            Ok(answer) => {
                let process = before.map(|process| process.name());
                return self.take_in(answer, process);
            }
        };
        at.failures += 1;
        let most = self.patience.div_duration_f64(PAUSE).ceil();
        let silent = at.silence.outlasts(self.patience, failed.as_ref());
        match failed {
            // Patience is for what comes back: servers, and a runtime that does not run now.
            Some(error) if !may_pass(&error) || silent || f64::from(at.failures) > most => {
                Err(error)
            }
            _ => {
                clock::sleep(if at.failures > 1 { PAUSE } else { SHORT_PAUSE }).await;
                Ok(true)
            }
        }
    }

    /// Takes in an answer, of this process.
    fn take_in(&mut self, answer: Value, process: Option<Arc<str>>) -> Result<bool, Error> {
        let Course::OneServer(at) = &mut self.course else {
            return Ok(false);
        };
        (at.failures, at.silence) = (0, Silence::default());
        if at.process.is_some() && at.process != process {
            // The cursor was that of another.
            at.begun_again += 1;
            if at.begun_again > ClusterScan::<u16>::ROUNDS {
                return Err(never_the_same());
            }
            (at.cursor, at.process) = (0, None);
            return Ok(true);
        }
        let (cursor, keys) = read_scan(answer).map_err(|_| unreadable())?;
        (at.cursor, at.process) = (cursor, process);
        self.ready.extend(keys);
        if cursor == 0 {
            self.course = Course::Ended;
        }
        Ok(true)
    }
}

impl fmt::Debug for KeyScan {
    /// Only how many keys wait: they may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyScan")
            .field("ready", &self.ready.len())
            .field("course", &self.course)
            .finish_non_exhaustive()
    }
}

/// Returns the error of a scan step whose server process is not known.
fn replaced() -> Error {
    Error::not_sent(ErrorKind::Lost {
        cause: "the server was connected to anew while it was asked".into(),
    })
}

fn never_the_same() -> Error {
    let kind = ErrorKind::Uncovered {
        slots: SlotRange::all().to_string().into(),
        cause: Some(Arc::from(
            "each time another process had taken over before it was through",
        )),
    };
    Error::new(kind, Certainty::Rejected)
}
