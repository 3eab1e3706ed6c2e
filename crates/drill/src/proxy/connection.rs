//! A client's connection: dials the server, and runs both lanes in one task until either side, or
//! a fault, ends it.

use super::exchange::Exchange;
use super::lane::{Flow, Lane};
use super::{Open, Placed, Plan, ToxicId, Way};
use crate::fault::{Direction, Item};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Sleep;

/// How long the server may take to accept a connection. Beyond any client's patience: a frozen
/// server with a full backlog is to look from behind the proxy as it does without.
const DIAL_LIMIT: Duration = Duration::from_secs(60);

/// All that a connection is started with.
pub(super) struct Start {
    pub(super) number: u64,
    pub(super) seed: u64,
    pub(super) resp: bool,
    pub(super) upstream: Arc<str>,
    pub(super) followed: watch::Receiver<Arc<Plan>>,
    pub(super) plan: Arc<Plan>,
    pub(super) open: Open,
}

/// Why there is no connection to the server.
enum Undialled {
    /// The server refuses, or does not answer.
    Unreachable,
    /// The proxy has ended.
    Ended,
}

struct ProxiedConnection {
    number: u64,
    seed: u64,
    up: Lane,
    down: Lane,
    exchange: Option<Exchange>,
    /// Whether it has been counted as one that is no longer followed.
    unfollowed: bool,
    /// For what the exchange keeps back.
    timer: Option<Pin<Box<Sleep>>>,
    open: Open,
}

impl Start {
    pub(super) async fn run(mut self, mut client: TcpStream) {
        let mut server = match self.dial().await {
            Ok(server) => server,
            Err(Undialled::Unreachable) => {
                self.open.0.unreachable.fetch_add(1, Ordering::Relaxed);
                let _ = client.set_zero_linger();
                return;
            }
            Err(Undialled::Ended) => return,
        };
        let (Ok(()), Ok(())) = (client.set_nodelay(true), server.set_nodelay(true)) else {
            return;
        };
        let Self {
            number,
            seed,
            resp,
            mut followed,
            mut plan,
            open,
            ..
        } = self;
        let resp = resp
            || plan
                .toxics
                .iter()
                .any(|placed| placed.toxic.fault.resp().is_some());
        let exchange = resp.then(Exchange::default);
        let (up, down) = (Lane::new(Way::Up), Lane::new(Way::Down));
        let mut connection = ProxiedConnection {
            number,
            seed,
            up,
            down,
            exchange,
            unfollowed: false,
            timer: None,
            open,
        };
        connection.follow(&plan);
        loop {
            let flow = tokio::select! {
                biased;
                changed = followed.changed() => match changed {
                    Ok(()) => Flow::Open,
                    Err(_) => Flow::Close,
                },
                flow = std::future::poll_fn(|cx| connection.poll(cx, &mut client, &mut server)) => flow,
            };
            match flow {
                Flow::Open => {
                    let next = Arc::clone(&followed.borrow_and_update());
                    connection.follow(&next);
                    // Only now: whoever changed the plan waits until nobody holds the one before.
                    drop(std::mem::replace(&mut plan, next));
                }
                Flow::Reset => {
                    let _ = (client.set_zero_linger(), server.set_zero_linger());
                    return;
                }
                Flow::Close | Flow::Finished => return,
            }
        }
    }

    /// Resolves the server's name and connects to it; meanwhile, as always, follows the plan.
    async fn dial(&mut self) -> Result<TcpStream, Undialled> {
        let upstream = match self.upstream.strip_prefix(':') {
            Some(port) => format!("localhost:{port}"),
            None => self.upstream.to_string(),
        };
        let dialled = tokio::time::timeout(DIAL_LIMIT, TcpStream::connect(upstream));
        tokio::pin!(dialled);
        loop {
            tokio::select! {
                outcome = &mut dialled => return outcome.ok().and_then(Result::ok).ok_or(Undialled::Unreachable),
                changed = self.followed.changed() => {
                    changed.map_err(|_| Undialled::Ended)?;
                    self.plan = Arc::clone(&self.followed.borrow_and_update());
                }
            }
        }
    }
}

impl ProxiedConnection {
    /// Puts the plan's faults to work, and ends those that are no longer in it.
    fn follow(&mut self, plan: &Plan) {
        let now = tokio::time::Instant::now().into_std();
        for placed in &plan.toxics {
            if let Some(old) = placed.replaces {
                self.replace(now, old, placed);
            }
        }
        let stays = |id| plan.toxics.iter().any(|placed| placed.id == id);
        self.up.retain(now, stays);
        self.down.retain(now, stays);
        if let Some(exchange) = &mut self.exchange {
            exchange.retain(stays);
            exchange.change_era();
        }
        for placed in &plan.toxics {
            if !placed.toxic.takes(self.seed, self.number) {
                continue;
            }
            let rng = || {
                placed
                    .toxic
                    .rng(self.seed, self.number.wrapping_add(1) << 32)
            };
            let direction = placed.toxic.direction;
            for (lane, other) in [
                (&mut self.up, Direction::Downstream),
                (&mut self.down, Direction::Upstream),
            ] {
                if direction != other && !lane.has_stage(placed.id) {
                    let stage = placed.toxic.fault.stage(now, rng(), &placed.touched);
                    stage
                        .into_iter()
                        .for_each(|stage| lane.add(placed.id, stage));
                }
            }
            if let (Some(exchange), Some(fault)) = (&mut self.exchange, placed.toxic.fault.resp()) {
                exchange.add(placed.id, fault, rng(), &placed.treated);
            }
        }
    }

    /// Puts a fault in the place of another, where that has taken hold.
    fn replace(&mut self, now: Instant, old: ToxicId, placed: &Placed) {
        let takes = placed.toxic.takes(self.seed, self.number);
        let rng = || {
            placed
                .toxic
                .rng(self.seed, self.number.wrapping_add(1) << 32)
        };
        for (lane, other) in [
            (&mut self.up, Direction::Downstream),
            (&mut self.down, Direction::Upstream),
        ] {
            if lane.has_stage(old) {
                let stage = (takes && placed.toxic.direction != other)
                    .then(|| placed.toxic.fault.stage(now, rng(), &placed.touched))
                    .flatten();
                lane.replace(now, old, placed.id, stage);
            }
        }
        if let (true, Some(exchange), Some(fault)) =
            (takes, &mut self.exchange, placed.toxic.fault.resp())
        {
            exchange.replace(old, placed.id, fault, rng(), &placed.treated);
        }
    }

    fn admits_commands(&self) -> bool {
        self.exchange
            .as_ref()
            .is_none_or(|exchange| exchange.admits(Way::Up))
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        client: &mut TcpStream,
        server: &mut TcpStream,
    ) -> Poll<Flow> {
        let tally = &self.open.0;
        loop {
            let up = self
                .up
                .poll(cx, client, server, self.exchange.as_mut(), &tally.bytes_up);
            let held_up = !self.admits_commands();
            if let Some(exchange) = &mut self.exchange {
                let now = tokio::time::Instant::now().into_std();
                let ready = exchange.ready(now);
                if !ready.is_empty() {
                    self.down.feed(Item::Bytes(ready), now);
                }
            }
            let down = self.down.poll(
                cx,
                server,
                client,
                self.exchange.as_mut(),
                &tally.bytes_down,
            );
            if let Some(exchange) = &mut self.exchange {
                tally
                    .answered
                    .fetch_add(exchange.take_answered(), Ordering::Relaxed);
                if exchange.is_lost() && !std::mem::replace(&mut self.unfollowed, true) {
                    tally.unfollowed.fetch_add(1, Ordering::Relaxed);
                }
                if exchange.is_broken() {
                    return Poll::Ready(Flow::Reset);
                }
            }
            match (up, down) {
                (Flow::Reset, _) | (_, Flow::Reset) => return Poll::Ready(Flow::Reset),
                (Flow::Close, _) | (_, Flow::Close) => return Poll::Ready(Flow::Close),
                (Flow::Finished, Flow::Finished) => return Poll::Ready(Flow::Finished),
                _ => {}
            }
            if held_up && self.admits_commands() {
                continue;
            }
            let due = self.exchange.as_ref().and_then(Exchange::due);
            if !due.is_some_and(|due| fires(&mut self.timer, due, cx)) {
                return Poll::Pending;
            }
        }
    }
}

/// Asks to be woken at `due`; whether that is now or past.
fn fires(timer: &mut Option<Pin<Box<Sleep>>>, due: Instant, cx: &mut Context<'_>) -> bool {
    let due = tokio::time::Instant::from_std(due);
    let timer = timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
    if timer.deadline() != due {
        timer.as_mut().reset(due);
    }
    timer.as_mut().poll(cx).is_ready()
}
