//! A primary that moves: replication with lag, promotions, primaries that come back, sentinels that
//! disagree.

mod client;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use steadfast_core::node::Endpoint;
use steadfast_core::report::InfoReplication;
use steadfast_core::sentinel::{CouncilConfig, SentinelCouncil, Term};
use steadfast_core::succession::Watermarks;

use super::events::Events;
use super::{Ended, Kind, Made, check_data, seeds};

/// The rule that is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    Nothing,
    /// Whatever was lost is sent again.
    RepeatsAnything,
    /// Abandoned connections are not fenced.
    DoesNotFence,
    /// An answer counts whoever gives it, whenever it comes.
    CountsTheDeposed,
    /// The sentinel that answered last is believed.
    BelievesTheLast,
    /// A server is put into service without being asked for its role.
    AsksNoRole,
    /// Writes that were acknowledged while ROLE was on its way are taken for certain too.
    CountsTooMuch,
}

const SERVERS: usize = 3;
const SENTINELS: usize = 3;
const KEYS: u32 = 5;
/// Things go wrong until then, in milliseconds.
const CHAOS: u64 = 12_000;
const END: u64 = CHAOS + 6_000;
const DEADLINE: u64 = 1_500;
const SILENCE: u64 = 250;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    Up,
    Frozen,
    Dead,
}

struct Server {
    power: Power,
    /// Rises with each start.
    run: u32,
    is_primary: bool,
    follows: Option<usize>,
    history: u32,
    shared: Option<(u32, u64)>,
    /// The writes it holds, in their order: the length is its offset.
    log: Vec<u32>,
    conns: BTreeSet<u64>,
    killed: BTreeSet<u64>,
    /// What came while it was frozen.
    held: Vec<(u64, Ask)>,
    lag: u64,
}

#[derive(Clone, Debug)]
enum Ask {
    /// The connections to kill first, then INFO and ROLE.
    Hello(Vec<u64>),
    Role,
    Command(u32),
}

#[derive(Clone, Debug)]
enum Answer {
    Hello { run: u32, info: InfoReplication },
    Role { is_primary: bool, offset: u64 },
    Done { op: u32, read: Vec<u32> },
    ReadOnly { op: u32 },
}

struct SentinelModel {
    epoch: u64,
    primary: usize,
    away: bool,
}

enum Event {
    Arrive {
        server: usize,
        run: u32,
        conn: u64,
        ask: Ask,
    },
    Reply {
        conn: u64,
        answer: Answer,
    },
    Cut {
        conn: u64,
    },
    Replicate {
        from: usize,
        to: usize,
        history: u32,
    },
    Told {
        sentinel: usize,
        epoch: u64,
        primary: usize,
    },
    Testify {
        sentinel: usize,
        asked: u64,
        epoch: u64,
        primary: usize,
    },
    Demote {
        server: usize,
    },
    Freeze {
        server: usize,
    },
    Thaw {
        server: usize,
    },
    Start {
        server: usize,
    },
    Failover,
    Return {
        sentinel: usize,
    },
    Trouble,
    Submit,
    Tick,
}

struct Link {
    conn: u64,
    server: usize,
    run: Option<u32>,
    term: Term,
    epoch: u64,
    ready: bool,
    since: u64,
    role_sent: Option<(u64, usize)>,
}

#[derive(Clone, Debug)]
struct Flight {
    conn: u64,
    server: usize,
    term: Term,
    epoch: u64,
    sent: u64,
}

struct Sim {
    now: u64,
    start: Instant,
    rng: fastrand::Rng,
    events: Events<Event>,
    broken: Broken,
    servers: Vec<Server>,
    sentinels: Vec<SentinelModel>,
    histories: u32,
    epoch: u64,
    /// The primary of the newest epoch.
    primary: usize,
    last_conn: u64,
    /// When the last message of each connection arrives, each way.
    arrivals: BTreeMap<(u64, bool), u64>,
    /// Until when the network holds back what a connection sends.
    stalled: BTreeMap<u64, u64>,
    // The client.
    council: SentinelCouncil,
    believed_last: Option<usize>,
    term_last: u64,
    link: Option<Link>,
    made: Vec<Made>,
    /// Those that have not ended, in the order of their deadlines.
    open: BTreeSet<u32>,
    pending: BTreeSet<u32>,
    flights: BTreeMap<u32, Flight>,
    /// Where commands of unknown outcome have been.
    lost: BTreeMap<u32, Vec<Flight>>,
    abandoned: Vec<(usize, u32, u64)>,
    asked_at: u64,
    // What the client says of failovers.
    marks: Option<Watermarks>,
    acknowledged: Vec<u32>,
    // What the checker remembers.
    told: (u64, usize),
    switched_at: u64,
    violation: Option<String>,
    switches: u32,
    certain: u64,
    at_risk: u64,
}

/// What a history had in it.
#[derive(Debug, Default)]
struct Seen {
    done: usize,
    unknown: usize,
    lost: usize,
    switches: u32,
    certain: u64,
    at_risk: u64,
}

fn endpoint(server: usize) -> Endpoint {
    Endpoint::new("data", server as u16 + 1)
}

fn sentinel(at: usize) -> Endpoint {
    Endpoint::new("sentinel", at as u16 + 1)
}

impl Sim {
    fn new(seed: u64, broken: Broken) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let server = |at: usize, lag| Server {
            power: Power::Up,
            run: 1,
            is_primary: at == 0,
            follows: (at > 0).then_some(0),
            history: 1,
            shared: None,
            log: Vec::new(),
            conns: BTreeSet::new(),
            killed: BTreeSet::new(),
            held: Vec::new(),
            lag,
        };
        let mut sim = Self {
            now: 0,
            start: Instant::now(),
            events: Events::new(),
            broken,
            servers: (0..SERVERS).map(|at| server(at, rng.u64(1..60))).collect(),
            sentinels: (0..SENTINELS)
                .map(|_| SentinelModel {
                    epoch: 0,
                    primary: 0,
                    away: false,
                })
                .collect(),
            histories: 1,
            epoch: 0,
            primary: 0,
            last_conn: 0,
            arrivals: BTreeMap::new(),
            stalled: BTreeMap::new(),
            council: SentinelCouncil::new((0..SENTINELS).map(sentinel), CouncilConfig::default()),
            believed_last: None,
            term_last: 0,
            link: None,
            made: Vec::new(),
            open: BTreeSet::new(),
            pending: BTreeSet::new(),
            flights: BTreeMap::new(),
            lost: BTreeMap::new(),
            abandoned: Vec::new(),
            asked_at: 0,
            marks: None,
            acknowledged: Vec::new(),
            told: (0, 0),
            switched_at: 0,
            violation: None,
            switches: 0,
            certain: 0,
            at_risk: 0,
            rng,
        };
        sim.events.plan(0, Event::Tick);
        sim.events.plan(50, Event::Submit);
        sim.events.plan(300, Event::Trouble);
        sim
    }

    fn run(mut self) -> Result<Seen, String> {
        while let Some((at, event)) = self.events.next() {
            if at > END {
                break;
            }
            self.now = at;
            self.happen(event);
            if let Some(violation) = self.violation.take() {
                return Err(format!("at {at} ms: {violation}"));
            }
        }
        self.check()
    }

    fn instant(&self, at: u64) -> Instant {
        self.start + Duration::from_millis(at)
    }

    fn plan(&mut self, after: u64, event: Event) {
        self.events.plan(self.now + after, event);
    }

    /// The delay of the next message of a connection, which never overtakes the one before.
    fn delay(&mut self, conn: u64, to_server: bool) -> u64 {
        let stalled = self.stalled.get(&conn).filter(|_| to_server).copied();
        let at = (self.now + self.rng.u64(1..8)).max(stalled.unwrap_or(0));
        let last = self.arrivals.entry((conn, to_server)).or_default();
        *last = (*last).max(at);
        *last - self.now
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive {
                server,
                run,
                conn,
                ask,
            } => self.arrive(server, run, conn, ask),
            Event::Reply { conn, answer } => self.answered(conn, answer),
            Event::Cut { conn } => self.cut(conn),
            Event::Replicate { from, to, history } => self.replicate(from, to, history),
            Event::Told {
                sentinel,
                epoch,
                primary,
            } => {
                let model = &mut self.sentinels[sentinel];
                if model.away {
                    self.plan(
                        100,
                        Event::Told {
                            sentinel,
                            epoch,
                            primary,
                        },
                    );
                } else if epoch > model.epoch {
                    (model.epoch, model.primary) = (epoch, primary);
                }
            }
            Event::Testify {
                sentinel,
                asked,
                epoch,
                primary,
            } => {
                self.hear(sentinel, asked, epoch, primary);
            }
            Event::Demote { server } => self.demote(server),
            Event::Freeze { server } => self.servers[server].power = Power::Frozen,
            Event::Thaw { server } => self.thaw(server),
            Event::Start { server } => self.restart(server),
            Event::Failover => self.fail_over(),
            Event::Return { sentinel } => self.sentinels[sentinel].away = false,
            Event::Trouble => self.trouble(),
            Event::Submit => self.submit(),
            Event::Tick => self.tick(),
        }
    }

    /// What must hold when all is well again.
    fn check(self) -> Result<Seen, String> {
        let data = &self.servers[self.primary].log;
        check_data(&self.made, data)?;
        let data: BTreeSet<u32> = data.iter().copied().collect();
        if let Some(op) = self.acknowledged.iter().find(|op| !data.contains(op)) {
            return Err(format!("acknowledged by the last primary, and lost: {op}"));
        }
        let ended = |wanted: Ended| {
            let made = self.made.iter();
            made.filter(move |made| made.ended.is_some_and(|(ended, _)| ended == wanted))
        };
        if let Some(op) = self.made.iter().position(|made| made.ended.is_none()) {
            return Err(format!("never ended: {op}"));
        }
        let written = |(at, made): &(usize, &Made)| {
            made.kind != Kind::Get
                && matches!(made.ended, Some((Ended::Done, _)))
                && !data.contains(&(*at as u32))
        };
        Ok(Seen {
            done: ended(Ended::Done).count(),
            unknown: ended(Ended::Unknown).count(),
            lost: self.made.iter().enumerate().filter(written).count(),
            switches: self.switches,
            certain: self.certain,
            at_risk: self.at_risk,
        })
    }
}

#[test]
fn t3_t18_t20_t22_whatever_fails_over_nothing_is_applied_twice_and_no_deposed_primary_is_believed()
{
    let all = seeds(400);
    let histories = all.clone().count();
    let few = histories < 100;
    let mut total = Seen::default();
    for seed in all {
        let seen = Sim::new(seed, Broken::Nothing).run();
        let seen = seen.unwrap_or_else(|violation| panic!("seed {seed}, {violation}"));
        total.done += seen.done;
        total.unknown += seen.unknown;
        total.lost += seen.lost;
        total.switches += seen.switches;
        total.certain += seen.certain;
        total.at_risk += seen.at_risk;
    }
    // There was something to check: failovers, and acknowledged writes that they cost.
    assert!(
        few || total.switches > u32::try_from(histories).unwrap_or(0) && total.lost > 100,
        "{total:?}"
    );
    assert!(
        few || total.certain > total.at_risk && total.at_risk as usize >= total.lost,
        "{total:?}"
    );
    assert!(few || total.done > 10 * total.unknown, "{total:?}");
}

#[test]
fn each_rule_of_a_failover_that_is_broken_is_noticed() {
    // That a write is repeated on a successor only, no history shows: who demotes kills the
    // clients.
    for broken in [
        Broken::RepeatsAnything,
        Broken::DoesNotFence,
        Broken::CountsTheDeposed,
        Broken::BelievesTheLast,
        Broken::AsksNoRole,
        Broken::CountsTooMuch,
    ] {
        let noticed = (0..400).find_map(|seed| Sim::new(seed, broken).run().err());
        assert!(noticed.is_some(), "{broken:?} goes unnoticed");
    }
}
