//! Reads from replicas, where they are asked for.
//!
//! A replica says in bytes how far it is, and callers ask in time how old. So every primary is
//! asked again and again how long its history is (INFO replication), and its replicas are asked
//! after it: one that has as much of the same history as the primary had at a moment has everything
//! that was acknowledged until then. That moment is the age of the replica, whatever its clock and
//! the network do; and a replica of which it cannot be measured is not read from.
//!
//! What this client writes itself it must find again. So each slot remembers when it was last
//! written to ([`crate::own_writes`]), and a replica that is not known to be younger than that does
//! not serve the slot.
//!
//! A replica does not know of a migration, and says of a key that has gone ahead of its slot that
//! there is none. So what is not there by the word of a replica is asked of the primary.

mod commands;
mod measuring;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use steadfast_core::command::Effect;
use steadfast_core::conn::Reply;
use steadfast_core::slot::{KeySet, Slot};
use tokio::sync::Notify;

use self::commands::{is_something, may_be_stale};
pub(crate) use self::measuring::keep_measured;
use super::Cluster;
use super::limits::Limits;
use super::node::Node;
use crate::call::Suspicion;
use crate::call::plan::{Payload, Plan};
use crate::error::{Error, ErrorKind};
use crate::link::ConnectionState;
use crate::options::{CallOptions, ReadFrom};
use crate::own_writes::OwnWrites;
use crate::{clock, metrics};

/// The state that there is only where replicas are read from.
#[derive(Default)]
pub(super) struct ReplicaReads {
    on: OnceLock<On>,
    /// Told when the first call asks for it.
    begins: Notify,
}

struct On {
    measured: ArcSwap<Vec<Measured>>,
    turn: AtomicUsize,
    served: AtomicU64,
    fell_back: AtomicU64,
}

/// A replica of which is known how old its data are at most.
#[derive(Clone)]
struct Measured {
    /// The place of its primary.
    of: u16,
    node: Arc<Node>,
    /// The numbers of its connections when it said so.
    epochs: Arc<[u64]>,
    /// It has all that its primary had acknowledged at this moment.
    proven: Instant,
}

impl Measured {
    /// Whether it is the same process still: one that was started anew in a moment may have older
    /// data.
    fn stands(&self) -> bool {
        let ready = self.node.client.state() == ConnectionState::Ready;
        ready && epochs(&self.node).eq(self.epochs.iter().copied())
    }
}

/// Numbers of the connections to a node, of which one is replaced whenever its process is.
fn epochs(node: &Node) -> impl Iterator<Item = u64> {
    let links = &node.client.inner.shared.links;
    links.iter().map(|link| link.epoch())
}

impl On {
    /// Keeps what was measured of a family. Of others nothing changes.
    fn keep(&self, primary: u16, family: Vec<Measured>) {
        let again = |one: &Measured| family.iter().any(|new| new.node.number == one.node.number);
        let before = self.measured.load();
        let others = before.iter().filter(|one| one.of != primary && !again(one));
        let mut all: Vec<Measured> = others.cloned().collect();
        all.extend(family);
        self.measured.store(Arc::new(all));
    }

    /// Forgets the families that are no more.
    fn forget_but(&self, families: &BTreeMap<u16, Vec<u16>>) {
        let measured = self.measured.load();
        let stays = |one: &&Measured| families.contains_key(&one.of);
        if !measured.iter().all(|one| stays(&one)) {
            let stay = measured.iter().filter(stays).cloned().collect();
            self.measured.store(Arc::new(stay));
        }
    }
}

/// The counts of reads, for status.
pub(super) struct ReadCounts {
    pub(super) served: u64,
    pub(super) fell_back: u64,
}

impl ReplicaReads {
    fn on(&self, writes: &OwnWrites) -> &On {
        if let Some(on) = self.on.get() {
            return on;
        }
        let on = self.on.get_or_init(|| {
            writes.begin();
            metrics::begin_replica_reads();
            On {
                measured: ArcSwap::default(),
                turn: AtomicUsize::new(0),
                served: AtomicU64::new(0),
                fell_back: AtomicU64::new(0),
            }
        });
        // Told before it is there, whoever waits would look in vain and wait on for ever.
        self.begins.notify_one();
        on
    }

    /// Waits until the first call asks for replicas.
    async fn begun(&self) -> &On {
        loop {
            match self.on.get() {
                Some(on) => return on,
                None => self.begins.notified().await,
            }
        }
    }

    pub(super) fn counts(&self) -> ReadCounts {
        let of = |count: fn(&On) -> &AtomicU64| {
            self.on
                .get()
                .map_or(0, |on| count(on).load(Ordering::Relaxed))
        };
        ReadCounts {
            served: of(|on| &on.served),
            fell_back: of(|on| &on.fell_back),
        }
    }

    /// Returns how old the data of this node are at most, in what is measured of it.
    pub(super) fn age_of(&self, number: u16, now: Instant) -> Option<Duration> {
        let measured = self.on.get()?.measured.load();
        let one = measured.iter().find(|one| one.node.number == number)?;
        Some(now.saturating_duration_since(one.proven))
    }
}

impl Cluster {
    /// A command of one slot: by a replica, where that is asked for and one is fit, else by the
    /// owner.
    pub(super) async fn follow_or_read(
        &self,
        place: (Slot, KeySet),
        payload: Payload<'_>,
        plan: Plan,
        options: &CallOptions,
    ) -> Result<Reply, Error> {
        let wanted = options.read_from.unwrap_or(self.settings().read_from);
        let Payload::Command(cmd) = payload else {
            return self.follow(place, payload, plan, options).await;
        };
        if wanted == ReadFrom::Primary || plan.effect != Effect::Read || !may_be_stale(cmd) {
            return self.follow(place, payload, plan, options).await;
        }
        let limits = Limits::new(plan.limit(options, self.settings().deadline)?);
        let on = self.reads.on(&self.writes);
        let mut suspicion = Suspicion::default();
        let answer = match self.fit_for(on, place.0, limits.started) {
            Some((one, fresh_for)) => {
                let limit = fresh_for.min(limits.limit / 2);
                let once = options.clone().attempts(1);
                let times = (limits.started, limit);
                let asked =
                    (one.node).attempt_after(payload, plan.clone(), &once, times, suspicion);
                let (answer, _, suspected) = asked.await;
                suspicion = suspected;
                // By the primary it would be as large.
                if let Err(error) = &answer
                    && matches!(error.kind(), ErrorKind::ReplyTooLarge { .. })
                {
                    return answer;
                }
                let answer = answer.ok().filter(|answer| is_something(cmd, answer));
                answer.filter(|_| one.stands())
            }
            None => None,
        };
        let (count, outcome) = match answer {
            Some(_) => (&on.served, "replica"),
            None => (&on.fell_back, "primary"),
        };
        count.fetch_add(1, Ordering::Relaxed);
        metrics::count_replica_read(outcome);
        if let Some(answer) = answer {
            return Ok(answer);
        }
        let left = limits.deadline.saturating_duration_since(clock::now());
        let rest = options.clone().deadline(left);
        let followed = self.follow_after(suspicion, place, payload, plan, &rest);
        let result = followed.await;
        result.map_err(|error| match error.kind() {
            ErrorKind::Timeout { .. } => {
                let at = error.at().map(Arc::from);
                let whole = limits.timed_out(error.certainty());
                at.into_iter().fold(whole, Error::named)
            }
            _ => error,
        })
    }

    /// A replica whose data are young enough for this slot, and for how long they still are.
    fn fit_for(&self, on: &On, slot: Slot, now: Instant) -> Option<(Measured, Duration)> {
        let owner = self.routes.owner(slot)?;
        let max_lag = self.settings().max_lag;
        let measured = on.measured.load();
        let left = |one: &Measured| {
            let age = now.saturating_duration_since(one.proven);
            max_lag.checked_sub(age).filter(|left| !left.is_zero())
        };
        let fit: Vec<(&Measured, Duration)> = (measured.iter())
            .filter(|one| one.of == owner && self.writes.are_before(one.proven, slot))
            .filter(|one| one.stands())
            .filter_map(|one| Some((one, left(one)?)))
            .collect();
        let turn = on.turn.fetch_add(1, Ordering::Relaxed);
        let (one, left) = fit.get(turn.checked_rem(fit.len())?)?;
        Some(((*one).clone(), *left))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use redis::{Cmd, Value};
    use steadfast_core::report::InfoReplication;

    use super::measuring::{Mark, proven};
    use super::*;

    fn cmd(words: &str) -> Cmd {
        let mut cmd = Cmd::new();
        for word in words.split(' ') {
            cmd.arg(word);
        }
        cmd
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn t24_whoever_measures_replicas_hears_of_the_first_read_that_wants_one() {
        for turn in 0..2_000 {
            let reads = Arc::new(ReplicaReads::default());
            let (waiting, waits) = tokio::sync::oneshot::channel();
            let measurer = {
                let reads = reads.clone();
                tokio::spawn(async move {
                    let _ = waiting.send(());
                    reads.begun().await;
                })
            };
            waits.await.unwrap();
            let writes = OwnWrites::new(clock::now(), Duration::from_secs(1));
            reads.on(&writes);
            let heard = clock::timeout(Duration::from_secs(20), measurer).await;
            assert!(heard.is_some(), "not in turn {turn}");
        }
    }

    #[test]
    fn t24_only_what_reads_by_the_table_and_means_the_same_everywhere_is_read_from_a_replica() {
        for words in [
            "GET k",
            "MGET {k}1 {k}2",
            "HGETALL k",
            "TTL k",
            "XRANGE k - +",
            "EXISTS k",
        ] {
            assert!(may_be_stale(&cmd(words)), "{words}");
        }
        for words in [
            "SET k v",
            "INCR k",
            "GETEX k EX 10",
            "EVAL s 1 k",
            "EVAL_RO s 1 k",
            "FCALL_RO f 1 k",
            "XREAD BLOCK 10 STREAMS k 0",
            "HSCAN k 0",
            "TOUCH k",
            "SINTER {k}1 {k}2",
            "NO.SUCH k",
            "PING",
        ] {
            assert!(!may_be_stale(&cmd(words)), "{words}");
        }
    }

    #[test]
    fn t24_what_is_not_there_by_the_word_of_a_replica_is_asked_of_the_primary() {
        let text = |text: &str| Value::BulkString(text.into());
        let get = cmd("GET k");
        for nothing in [
            Value::Nil,
            Value::Int(0),
            Value::Int(-2),
            text(""),
            Value::SimpleString("none".into()),
            Value::Array(Vec::new()),
            Value::Array(vec![Value::Nil, Value::Int(0)]),
            Value::Map(Vec::new()),
        ] {
            let answer = Reply::One(nothing);
            assert!(!is_something(&get, &answer), "{answer:?}");
        }
        let half = Reply::One(Value::Array(vec![text("v"), Value::Nil]));
        assert!(is_something(&cmd("HMGET k a b"), &half));
        assert!(!is_something(&cmd("MGET {k}1 {k}2"), &half));
        assert!(is_something(&get, &Reply::One(text("v"))));
    }

    #[test]
    fn t24_a_replica_is_as_young_as_the_last_moment_of_whose_history_it_has_all() {
        let start = clock::now();
        let at = |n: u64| start + Duration::from_millis(n);
        let mark = |n: u64, history: &str, offset| Mark {
            at: at(n),
            history: history.into(),
            offset,
        };
        let marks: VecDeque<Mark> =
            [mark(30, "b", 10), mark(20, "a", 90), mark(10, "a", 50)].into();
        let said = |history: &str, offset: u64| {
            let text =
                format!("role:slave\r\nmaster_replid:{history}\r\nmaster_repl_offset:{offset}\r\n");
            InfoReplication::read(&text).expect("it can be read")
        };
        assert_eq!(proven(&marks, &said("a", 90)), Some(at(20)));
        assert_eq!(proven(&marks, &said("a", 89)), Some(at(10)));
        assert_eq!(proven(&marks, &said("a", 49)), None);
        assert_eq!(
            proven(&marks, &said("b", 9)),
            None,
            "it has another history"
        );
        assert_eq!(proven(&marks, &said("b", 10)), Some(at(30)));
    }
}
