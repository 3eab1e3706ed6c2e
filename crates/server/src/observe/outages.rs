//! An outage is one thing, with a beginning, an end and a cause, and with what callers felt of it.
//! Told event by event it must be put together by each reader, and one that ended without a new
//! connection would never end. So it is put together here. Pure: events, dates and counts go in.
//! Counts are read under the lock, so that no outage begins with newer ones than it ends with.

use std::collections::{BTreeSet, VecDeque};

use parking_lot::Mutex;
use serde::Serialize;
use steadfast::EventKind;

use super::tally::ReadCounts;

/// Outages kept.
const KEPT: usize = 50;

/// An outage, with its beginning and its end.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Outage {
    of: OutageOf,
    began_ms: u64,
    /// Absent while it lasts.
    ended_ms: Option<u64>,
    ended_by: Option<OutageEnd>,
    /// The cause of the last failed attempt, or else of the outage.
    cause: String,
    /// The silence of Redis before it was noticed; absent where the end of a connection told at
    /// once.
    detection_ms: Option<f64>,
    /// Attempts to connect that failed.
    attempts: u64,
    /// Whether these are the many outages of a connection that flaps, told as one.
    flapping: bool,
    /// The number of times that the connection was lost.
    times: u64,
    /// Calls to Redis that were refused at once.
    refused: u64,
    /// Requests to Redis whose outcome is unknown.
    unknown: u64,
    #[serde(flatten)]
    within: OutageImpact,
    /// The counts at its beginning, or its latest one; absent once it is over.
    #[serde(skip)]
    since: Option<ReadCounts>,
}

/// The part that is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OutageOf {
    Redis,
    Database,
    /// Redis and database answer, and callers get nothing.
    Reads,
}

/// The way in which an outage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OutageEnd {
    /// A new connection was made.
    Reconnected,
    /// The part that had not answered did so again.
    Recovered,
    /// Others serve in the place of a node of a cluster.
    Succeeded,
}

/// The impact on callers while it lasted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
struct OutageImpact {
    calls: u64,
    failed: u64,
    stale: u64,
    slow: u64,
    writes: u64,
    writes_failed: u64,
}

/// The outages of late.
#[derive(Debug, Default)]
pub(crate) struct Outages {
    state: Mutex<OutageList>,
}

#[derive(Debug, Default)]
struct OutageList {
    kept: VecDeque<Outage>,
    /// The client's connections that are out of service.
    away: BTreeSet<usize>,
    /// The client's connections that flap: as long as one does, it is the same outage that goes on.
    flapping: BTreeSet<usize>,
}

impl Outages {
    /// Something happened to a connection, when so much had been counted.
    pub(crate) fn connection(&self, event: &steadfast::Event, counts: impl FnOnce() -> ReadCounts) {
        let mut state = self.state.lock();
        let counts = counts();
        let (at_ms, connection) = (event.at_ms, event.connection);
        match &event.kind {
            EventKind::Lost { cause, unknown, .. } => {
                let outage = state.lost(connection, at_ms, cause, counts);
                outage.unknown += *unknown as u64;
            }
            EventKind::ConnectFailed { cause, .. } => {
                let outage = state.lost(connection, at_ms, cause, counts);
                outage.attempts += 1;
                cause.as_ref().clone_into(&mut outage.cause);
            }
            EventKind::Unresponsive { quiet_ms } => {
                let cause = "Redis stopped answering";
                let outage = state.lost(connection, at_ms, cause, counts);
                outage.detection_ms.get_or_insert(*quiet_ms);
            }
            EventKind::Connected { refused, .. } => {
                state.back(
                    connection,
                    at_ms,
                    OutageEnd::Reconnected,
                    (*refused, 0),
                    counts,
                );
            }
            EventKind::Recovered {
                refused, unknown, ..
            } => {
                let told = (*refused, *unknown as u64);
                state.back(connection, at_ms, OutageEnd::Recovered, told, counts);
            }
            EventKind::Retired { refused } => {
                let told = (*refused, 0);
                state.back(connection, at_ms, OutageEnd::Succeeded, told, counts);
            }
            EventKind::Flapping(told) => {
                state.flap_since(connection, told.since_ms, told.reconnects, &told.cause);
            }
            EventKind::FlappingEnded(_) => {
                state.flapping.remove(&connection);
            }
            // A node of a cluster was left for good. A client as a whole is closed for good too,
            // but Redis is no better for it.
            EventKind::Closed { .. } if event.node.is_some() => {
                state.back(connection, at_ms, OutageEnd::Recovered, (0, 0), counts);
            }
            _ => {}
        }
    }

    /// Events may have been missed, and that a connection no longer flaps may be one of them: no
    /// others flap still than these. One that does, and is not among them, tells of it again.
    pub(crate) fn none_flaps_but(&self, connections: &BTreeSet<usize>) {
        let flapping = &mut self.state.lock().flapping;
        flapping.retain(|connection| connections.contains(connection));
    }

    /// All that Redis holds is served, whatever has become of the connections that were lost: a
    /// node of a cluster that another has taken over from never comes back by itself, and an event
    /// can be missed.
    pub(crate) fn redis_serves(&self, at_ms: u64, counts: impl FnOnce() -> ReadCounts) {
        let mut state = self.state.lock();
        state.away.clear();
        if let Some(outage) = state.open(OutageOf::Redis) {
            outage.end(at_ms, OutageEnd::Recovered, counts());
        }
    }

    /// Records whether the database, or the reads, are in trouble; may be told again and again.
    pub(crate) fn is(
        &self,
        of: OutageOf,
        trouble: Option<&str>,
        at_ms: u64,
        counts: impl FnOnce() -> ReadCounts,
    ) {
        let mut state = self.state.lock();
        let counts = counts();
        match (state.open(of), trouble) {
            (None, Some(cause)) => {
                state.begin(of, at_ms, cause, counts);
            }
            (Some(outage), None) => outage.end(at_ms, OutageEnd::Recovered, counts),
            _ => {}
        }
    }

    /// The last outages, oldest first.
    pub(crate) fn list(&self, counts: impl FnOnce() -> ReadCounts) -> Vec<Outage> {
        let state = self.state.lock();
        let counts = counts();
        let kept = state.kept.iter();
        kept.map(|outage| state.told(outage, counts)).collect()
    }

    /// The one that began first of those that last.
    pub(crate) fn current(&self, counts: impl FnOnce() -> ReadCounts) -> Option<Outage> {
        let state = self.state.lock();
        let counts = counts();
        let mut kept = state.kept.iter();
        kept.find_map(|outage| {
            Some(state.told(outage, counts)).filter(|told| told.ended_ms.is_none())
        })
    }
}

impl OutageList {
    /// Returns an outage with the impact up to these counts. One of a connection that flaps goes on
    /// between its losses, and is over with the flapping.
    fn told(&self, outage: &Outage, counts: ReadCounts) -> Outage {
        let mut told = outage.until(counts);
        let of_redis = |other: &&Outage| other.of == OutageOf::Redis;
        let newest = self.kept.iter().rev().find(of_redis);
        if self.flaps_on(outage) && newest.is_some_and(|newest| newest.began_ms == outage.began_ms)
        {
            (told.ended_ms, told.ended_by) = (None, None);
        }
        told
    }

    /// Whether it is one of connections of which some flap still.
    fn flaps_on(&self, outage: &Outage) -> bool {
        outage.flapping && !self.flapping.is_empty()
    }

    fn open(&mut self, of: OutageOf) -> Option<&mut Outage> {
        let mut kept = self.kept.iter_mut().rev();
        kept.find(|outage| outage.of == of && outage.ended_ms.is_none())
    }

    /// A connection is out of service: the outage that this belongs to.
    fn lost(
        &mut self,
        connection: usize,
        at_ms: u64,
        cause: &str,
        counts: ReadCounts,
    ) -> &mut Outage {
        self.away.insert(connection);
        let last = self
            .kept
            .iter()
            .rposition(|outage| outage.of == OutageOf::Redis);
        let Some(index) = last else {
            return self.begin(OutageOf::Redis, at_ms, cause, counts);
        };
        if self.kept[index].ended_ms.is_some() {
            if !self.flaps_on(&self.kept[index]) {
                return self.begin(OutageOf::Redis, at_ms, cause, counts);
            }
            self.kept[index].begin_again(cause, counts);
        }
        &mut self.kept[index]
    }

    fn begin(&mut self, of: OutageOf, at_ms: u64, cause: &str, counts: ReadCounts) -> &mut Outage {
        if self.kept.len() == KEPT {
            // One that lasts is kept, however old it is: it would seem to begin now.
            let is_over = |outage: &Outage| outage.ended_ms.is_some();
            let oldest = self.kept.iter().position(is_over);
            self.kept.remove(oldest.unwrap_or_default());
        }
        self.kept.push_back(Outage {
            of,
            began_ms: at_ms,
            ended_ms: None,
            ended_by: None,
            cause: cause.to_owned(),
            detection_ms: None,
            attempts: 0,
            flapping: false,
            times: 1,
            refused: 0,
            unknown: 0,
            within: OutageImpact::default(),
            since: Some(counts),
        });
        let newest = self.kept.len() - 1;
        &mut self.kept[newest]
    }

    /// A connection is in service, after so many calls that were refused or whose outcome is
    /// unknown. The outage is over with the last of them.
    fn back(
        &mut self,
        connection: usize,
        at_ms: u64,
        by: OutageEnd,
        told: (u64, u64),
        counts: ReadCounts,
    ) {
        self.away.remove(&connection);
        let others = !self.away.is_empty();
        if let Some(outage) = self.open(OutageOf::Redis) {
            outage.refused += told.0;
            outage.unknown += told.1;
            if !others {
                outage.end(at_ms, by, counts);
            }
        }
    }

    /// A connection flaps: its outages since then are one, in the place of the first of them.
    fn flap_since(&mut self, connection: usize, since_ms: u64, times: u64, cause: &str) {
        self.flapping.insert(connection);
        let is_part = |outage: &Outage| outage.of == OutageOf::Redis && outage.began_ms >= since_ms;
        let first = self.kept.iter().position(is_part).unwrap_or_default();
        let mut of_it = Vec::new();
        self.kept.retain(|outage| {
            let part = is_part(outage);
            if part {
                of_it.push(outage.clone());
            }
            !part
        });
        let Some(mut all) = of_it.into_iter().reduce(Outage::and) else {
            return;
        };
        all.flapping = true;
        all.times = times;
        cause.clone_into(&mut all.cause);
        self.kept.insert(first, all);
    }
}

impl Outage {
    fn begin_again(&mut self, cause: &str, counts: ReadCounts) {
        self.ended_ms = None;
        self.ended_by = None;
        self.times += 1;
        cause.clone_into(&mut self.cause);
        self.since = Some(counts);
    }

    fn end(&mut self, at_ms: u64, by: OutageEnd, counts: ReadCounts) {
        *self = self.until(counts);
        self.since = None;
        self.ended_ms = Some(at_ms);
        self.ended_by = Some(by);
    }

    /// Returns the outage with the impact up to these counts.
    fn until(&self, counts: ReadCounts) -> Self {
        let mut outage = self.clone();
        if let Some(since) = self.since {
            outage.within.add(counts.since(since));
            outage.since = Some(counts);
        }
        outage
    }

    fn and(mut self, later: Self) -> Self {
        self.ended_ms = later.ended_ms;
        self.ended_by = later.ended_by;
        self.attempts += later.attempts;
        self.times += later.times;
        self.refused += later.refused;
        self.unknown += later.unknown;
        self.within.join(later.within);
        self.since = later.since;
        self
    }
}

impl OutageImpact {
    fn add(&mut self, counts: ReadCounts) {
        self.join(Self {
            calls: counts.reads(),
            failed: counts.failed,
            stale: counts.stale,
            slow: counts.slow,
            writes: counts.writes,
            writes_failed: counts.writes_failed,
        });
    }

    fn join(&mut self, other: Self) {
        self.calls += other.calls;
        self.failed += other.failed;
        self.stale += other.stale;
        self.slow += other.slow;
        self.writes += other.writes;
        self.writes_failed += other.writes_failed;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value as Json, json};
    use steadfast::Event;

    use super::*;

    fn happens(outages: &Outages, at_ms: u64, kind: EventKind, counts: ReadCounts) {
        let event = Event {
            seq: at_ms,
            at_ms,
            connection: 0,
            node: None,
            folded: false,
            kind,
        };
        outages.connection(&event, || counts);
    }

    fn lost() -> EventKind {
        EventKind::Lost {
            cause: "reset".into(),
            unknown: 1,
            not_sent: 0,
        }
    }

    fn connected() -> EventKind {
        EventKind::Connected {
            address: String::new(),
            version: String::new(),
            attempt: 1,
            outage_ms: None,
            took_ms: 1.0,
            refused: 2,
        }
    }

    fn counts(database: u64, failed: u64, stale: u64) -> ReadCounts {
        ReadCounts {
            database,
            failed,
            stale,
            ..ReadCounts::default()
        }
    }

    fn list(outages: &Outages, counts: ReadCounts) -> Json {
        serde_json::to_value(outages.list(|| counts)).unwrap()
    }

    #[test]
    fn s5_an_outage_begins_and_ends_once_and_holds_what_callers_felt() {
        let outages = Outages::default();
        happens(&outages, 100, lost(), counts(10, 0, 0));
        for attempt in 1..=3 {
            let failed = EventKind::ConnectFailed {
                attempt,
                cause: "refused".into(),
                retry_in_ms: 1.0,
            };
            happens(&outages, 100, failed, counts(11, 0, 0));
        }
        let lasting = &list(&outages, counts(14, 1, 2))[0];
        assert_eq!(lasting["ended_ms"], Json::Null);
        assert_eq!(lasting["failed"], 1, "so far");
        happens(&outages, 900, connected(), counts(15, 2, 3));
        let over = list(&outages, counts(99, 9, 9));
        let expected = json!([{
            "of": "redis", "began_ms": 100, "ended_ms": 900, "ended_by": "reconnected",
            "cause": "refused", "detection_ms": null, "attempts": 3, "flapping": false, "times": 1,
            "refused": 2, "unknown": 1,
            "calls": 7, "failed": 2, "stale": 3, "slow": 0, "writes": 0, "writes_failed": 0,
        }]);
        assert_eq!(over, expected);
        assert_eq!(outages.current(|| counts(0, 0, 0)), None);
    }

    #[test]
    fn s5_an_outage_without_a_new_connection_ends_too() {
        let outages = Outages::default();
        happens(
            &outages,
            100,
            EventKind::Unresponsive { quiet_ms: 500.0 },
            counts(0, 0, 0),
        );
        let recovered = EventKind::Recovered {
            quiet_ms: 3000.0,
            refused: 40,
            unknown: 2,
        };
        happens(&outages, 2600, recovered, counts(3, 0, 0));
        let only = &list(&outages, counts(3, 0, 0))[0];
        assert_eq!(
            (&only["ended_by"], &only["detection_ms"], &only["refused"]),
            (&json!("recovered"), &json!(500.0), &json!(40))
        );
    }

    #[test]
    fn s5_an_outage_of_a_node_is_over_when_others_serve_in_its_place() {
        let outages = Outages::default();
        happens(&outages, 100, lost(), counts(0, 0, 0));
        let retired = EventKind::Retired { refused: 7 };
        happens(&outages, 900, retired, counts(0, 0, 0));
        let only = &list(&outages, counts(0, 0, 0))[0];
        assert_eq!(
            (&only["ended_by"], &only["ended_ms"], &only["refused"]),
            (&json!("succeeded"), &json!(900), &json!(7))
        );
        assert!(outages.state.lock().away.is_empty());
        happens(&outages, 1_000, lost(), counts(0, 0, 0));
        happens(&outages, 1_100, connected(), counts(0, 0, 0));
        assert_eq!(
            outages.current(|| counts(0, 0, 0)),
            None,
            "another's is its own"
        );
    }

    #[test]
    fn s5_a_connection_that_flaps_is_one_outage() {
        let outages = Outages::default();
        let blip = |n: u64| {
            happens(&outages, n * 400, lost(), counts(n * 10, n, 0));
            happens(
                &outages,
                n * 400 + 50,
                connected(),
                counts(n * 10 + 1, n, 0),
            );
        };
        (1..=11).for_each(blip);
        assert_eq!(
            list(&outages, counts(0, 0, 0)).as_array().unwrap().len(),
            11
        );
        outages.state.lock().flap_since(0, 400, 11, "reset");
        (12..=20).for_each(blip);
        let all = list(&outages, counts(0, 0, 0));
        assert_eq!(all.as_array().unwrap().len(), 1, "{all}");
        assert_eq!(
            (&all[0]["flapping"], &all[0]["times"], &all[0]["calls"]),
            (&json!(true), &json!(20), &json!(20))
        );
        // Between two losses it is not over: one that is steady for a moment flaps on.
        assert_eq!(all[0]["ended_ms"], Json::Null, "{all}");
        assert_eq!(all[0]["ended_by"], Json::Null, "{all}");
        assert!(outages.current(|| counts(0, 0, 0)).is_some());
        outages.state.lock().flapping.clear();
        let over = list(&outages, counts(0, 0, 0));
        assert_eq!(over[0]["ended_ms"], 20 * 400 + 50, "when it was last back");
        assert_eq!(over[0]["ended_by"], "reconnected", "{over}");
        assert_eq!(outages.current(|| counts(0, 0, 0)), None);
        blip(21);
        assert_eq!(list(&outages, counts(0, 0, 0)).as_array().unwrap().len(), 2);
    }

    #[test]
    fn s5_a_connection_of_which_the_end_of_the_flapping_was_missed_flaps_no_more() {
        let outages = Outages::default();
        let lasts = || outages.current(|| counts(0, 0, 0)).is_some();
        let blip = |at_ms| {
            happens(&outages, at_ms, lost(), counts(0, 0, 0));
            happens(&outages, at_ms + 50, connected(), counts(0, 0, 0));
        };
        blip(100);
        outages.state.lock().flap_since(0, 100, 11, "reset");
        outages.none_flaps_but(&BTreeSet::from([0, 7]));
        assert!(lasts(), "it flaps on, as is known");
        outages.none_flaps_but(&BTreeSet::from([7]));
        assert!(!lasts());
        blip(900_000);
        let told = list(&outages, counts(0, 0, 0));
        let began = |at: usize| told[at]["began_ms"].as_u64();
        assert_eq!((began(0), began(1)), (Some(100), Some(900_000)), "{told}");
    }

    #[test]
    fn s5_an_outage_of_connections_that_flap_goes_on_until_none_flaps() {
        let outages = Outages::default();
        let flaps = |connection, since_ms| {
            let mut state = outages.state.lock();
            state.flap_since(connection, since_ms, 11, "reset");
        };
        let is_steady = |connection| outages.state.lock().flapping.remove(&connection);
        of_node(&outages, 4, 100, lost());
        of_node(&outages, 4, 150, connected());
        flaps(4, 100);
        of_node(&outages, 7, 200, lost());
        of_node(&outages, 7, 250, connected());
        flaps(7, 200);
        is_steady(4);
        let lasts = || outages.current(|| counts(0, 0, 0)).is_some();
        assert!(lasts(), "the other flaps on");
        of_node(&outages, 7, 300, lost());
        of_node(&outages, 7, 350, connected());
        let told = list(&outages, counts(0, 0, 0));
        assert_eq!(told.as_array().unwrap().len(), 1, "{told}");
        is_steady(7);
        assert!(!lasts());
    }

    #[test]
    fn s5_a_redis_that_flaps_neither_hides_nor_moves_the_outage_of_the_database() {
        let outages = Outages::default();
        let database = |trouble, at_ms| {
            outages.is(OutageOf::Database, trouble, at_ms, || counts(0, 0, 0));
        };
        let blip = |at_ms| {
            happens(&outages, at_ms, lost(), counts(0, 0, 0));
            happens(&outages, at_ms + 5, connected(), counts(0, 0, 0));
        };
        blip(100);
        database(Some("refused"), 200);
        blip(300);
        outages.state.lock().flap_since(0, 100, 2, "reset");
        let told = list(&outages, counts(0, 0, 0));
        let of = |at: usize| (told[at]["of"].clone(), told[at]["flapping"].clone());
        assert_eq!(of(0), (json!("redis"), json!(true)), "{told}");
        assert_eq!(of(1), (json!("database"), json!(false)), "{told}");
        let first = outages.current(|| counts(0, 0, 0)).unwrap();
        assert_eq!(first.began_ms, 100, "what began first of what lasts");
        // However many come after it, one that lasts began when it did.
        outages.state.lock().flapping.clear();
        (1..=60).for_each(|n| blip(1_000 * n));
        database(Some("refused"), 70_000);
        let told = outages.list(|| counts(0, 0, 0));
        assert_eq!(told.len(), KEPT);
        let mut of_database = told.iter().filter(|one| one.of == OutageOf::Database);
        assert_eq!(of_database.next().map(|one| one.began_ms), Some(200));
    }

    /// What happens to a connection to a node of a cluster.
    fn of_node(outages: &Outages, connection: usize, at_ms: u64, kind: EventKind) {
        let event = Event {
            seq: at_ms,
            at_ms,
            connection,
            node: Some("10.0.0.1:6379".into()),
            folded: false,
            kind,
        };
        outages.connection(&event, || counts(at_ms, 0, 0));
    }

    #[test]
    fn s5_an_outage_ends_when_another_node_has_taken_over_and_the_next_is_one_of_its_own() {
        let outages = Outages::default();
        of_node(&outages, 4, 100, lost());
        outages.redis_serves(900, || counts(900, 0, 0));
        outages.redis_serves(1900, || counts(1900, 0, 0));
        let told = list(&outages, counts(2000, 0, 0));
        assert_eq!(
            (
                &told[0]["ended_ms"],
                &told[0]["ended_by"],
                &told[0]["calls"]
            ),
            (&json!(900), &json!("recovered"), &json!(800))
        );
        // Nothing of the old one keeps the next from ending.
        of_node(&outages, 7, 3000, lost());
        of_node(&outages, 7, 3500, connected());
        let told = list(&outages, counts(4000, 0, 0));
        assert_eq!(told[1]["ended_ms"], 3500, "{told}");
    }

    #[test]
    fn s5_an_outage_ends_with_the_node_that_was_left_for_good() {
        let outages = Outages::default();
        of_node(&outages, 4, 100, lost());
        of_node(&outages, 7, 200, lost());
        of_node(&outages, 4, 300, EventKind::Closed { unfinished: 0 });
        assert!(outages.current(|| counts(300, 0, 0)).is_some(), "the other");
        of_node(&outages, 7, 400, EventKind::Closed { unfinished: 0 });
        assert_eq!(outages.current(|| counts(400, 0, 0)), None);
    }

    #[test]
    fn s5_counts_that_were_read_in_another_order_are_no_fault() {
        let outages = Outages::default();
        outages.is(OutageOf::Database, Some("refused"), 1, || counts(9, 9, 9));
        let told = &list(&outages, counts(8, 8, 8))[0];
        assert_eq!((&told["calls"], &told["failed"]), (&json!(0), &json!(0)));
    }

    #[test]
    fn s5_a_database_that_is_away_and_reads_that_fail_are_outages_too() {
        let outages = Outages::default();
        outages.is(OutageOf::Database, None, 1, || counts(0, 0, 0));
        for at in 2..5 {
            outages.is(OutageOf::Database, Some("refused"), at, || counts(0, at, 0));
        }
        outages.is(OutageOf::Reads, Some("`search`: gone"), 5, || {
            counts(0, 5, 0)
        });
        outages.is(OutageOf::Database, None, 6, || counts(0, 6, 0));
        let told = list(&outages, counts(0, 8, 0));
        assert_eq!(
            (&told[0]["of"], &told[0]["failed"]),
            (&json!("database"), &json!(4))
        );
        assert_eq!(
            (&told[1]["of"], &told[1]["ended_ms"], &told[1]["failed"]),
            (&json!("reads"), &Json::Null, &json!(3))
        );
    }
}
