//! The tasks that ask the sentinels and listen to them, one for each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;
use steadfast_core::node::{Endpoint, MAX_NAME};
use steadfast_core::policy::Backoff;
use steadfast_core::report::{
    MonitoredPrimary, PeerSentinel, SentinelReplica, SwitchMaster, primary_address,
};
use steadfast_core::resp::Limits;
use steadfast_core::sentinel::Testimony;

use crate::clock;
use crate::credentials::Credentials;
use crate::error::connect::ConnectError;
use crate::link::connect::{Exchange, auth, dial_sentinel, within};
use crate::link::shared::Shared;
use crate::sentinel::{Answer, Discovery, Switch};
use crate::settings::Settings;
use crate::task::{Apart, Owned};
use crate::wire::queue::DriverCommand;
use crate::wire::stream::Stream;
use crate::wire::words::{as_error, command, without_arguments};

/// The longest time between two confirmations, for which an answer counts. A tenth of it is left
/// for the answer to come, and up to two more are taken off at random.
const CONFIRM: Duration = Duration::from_secs(10);
/// The least pause between two questions to one sentinel, however often they are wanted.
const LEAST: Duration = Duration::from_millis(100);
/// The same when a sentinel tells of a switch, which is rare, and which every call waits for.
const TOLD: Duration = Duration::from_millis(10);
/// The length that the pause of those that are wanted grows to while they are wanted again and
/// again and name no other.
const MOST: Duration = Duration::from_secs(1);
/// The pause between two looks at a listening connection on which nothing comes.
const LISTEN: Duration = Duration::from_secs(5);
/// The time over which clients that start together begin to listen: a random part of it. Until
/// then each has asked.
const SPREAD: Duration = Duration::from_secs(1);
/// Between attempts to reach a sentinel: full jitter.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// Between looks whether other sentinels have become known.
const LOOK: Duration = Duration::from_secs(1);

/// Returns the limits of a sentinel's reply: some kilobytes for each of at most 32 others.
fn limits() -> Limits {
    Limits {
        depth: 8,
        elements: 1 << 16,
        bulk_bytes: 1 << 16,
        line_bytes: 1 << 16,
        total_bytes: 8 << 20,
    }
}

/// Keeps a task for each sentinel that is known. Ends with the client.
pub(crate) async fn watch(shared: Arc<Shared>) {
    let Some(discovery) = shared.discovery.clone() else {
        return;
    };
    let mut tasks: BTreeMap<Endpoint, Owned<()>> = BTreeMap::new();
    let mut believed = discovery.believed.subscribe();
    loop {
        let known = discovery.sentinels();
        tasks.retain(|endpoint, task| {
            let is_known = known.contains(endpoint);
            if is_known && task.is_finished() {
                // It ends by a panic only.
                shared.stuck(&shared.links[0], Duration::ZERO);
            }
            is_known && !task.is_finished()
        });
        for endpoint in known {
            tasks.entry(endpoint).or_insert_with_key(|endpoint| {
                let attends = attend(Arc::clone(&shared), endpoint.clone());
                Owned::new(tokio::spawn(attends))
            });
        }
        tokio::select! {
            biased;
            () = shared.links[0].closed() => return,
            // Who has answered may have told of others.
            _ = believed.changed() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// Asks one sentinel again and again, and listens to it. That the one fails does not disturb the
/// other.
async fn attend(shared: Arc<Shared>, at: Endpoint) {
    let Some(discovery) = shared.discovery.clone() else {
        return;
    };
    let [asking, listening] = [Apart::new(1), Apart::new(1)];
    let asks = async {
        let mut failed = 0;
        loop {
            let asked = ask_again_and_again(&shared, &discovery, &asking, &at, &mut failed);
            let error = asked.await;
            discovery.failed(&at, &error);
            pause_after(&shared, &discovery, &at, &error, &mut failed).await;
        }
    };
    let listens = async {
        let mut failed = 0;
        // A fleet that starts at once is not to come with all its connections at once.
        tokio::time::sleep(SPREAD.mul_f64(shared.rng().f64())).await;
        loop {
            let error = listen(&shared, &discovery, &listening, &at, &mut failed).await;
            pause_after(&shared, &discovery, &at, &error, &mut failed).await;
        }
    };
    let ((), ()) = tokio::join!(asks, listens);
}

async fn pause_after(
    shared: &Shared,
    discovery: &Discovery,
    at: &Endpoint,
    error: &ConnectError,
    failed: &mut u32,
) {
    tracing::debug!(sentinel = %at, %error, "a sentinel cannot be asked, or listened to");
    *failed += 1;
    let mut wanted = discovery.wanted.subscribe();
    let mut told = discovery.told.subscribe();
    let began = clock::now();
    let pause = Backoff::full_jitter(RETRY.0, RETRY.1).pause(*failed, &mut shared.rng());
    tokio::select! {
        () = tokio::time::sleep(pause.max(RETRY.0)) => {}
        () = wanted_again(&mut wanted, began + LEAST) => {}
        () = wanted_again(&mut told, began + LEAST) => {}
    }
}

/// Waits until all sentinels are to be asked at once, but not before `soonest`.
async fn wanted_again(wanted: &mut tokio::sync::watch::Receiver<u64>, soonest: Instant) {
    if wanted.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    clock::sleep_until(soonest).await;
    wanted.borrow_and_update();
}

async fn ask_again_and_again(
    shared: &Arc<Shared>,
    discovery: &Discovery,
    places: &Apart,
    at: &Endpoint,
    failed: &mut u32,
) -> ConnectError {
    let asking = async {
        let limit = shared.settings.connect_timeout;
        let (mut stream, address) = reach(shared, discovery, places, at).await?;
        let mut exchange = Exchange::limited(&mut stream, &address, limits());
        let mut wanted = discovery.wanted.subscribe();
        let mut told = discovery.told.subscribe();
        let mut rng = shared.rng();
        let every = shared.settings.confirm_every(CONFIRM);
        let mut least = LEAST;
        loop {
            wanted.borrow_and_update();
            told.borrow_and_update();
            let asked = clock::now();
            let questions = questions(&discovery.service);
            let replies = within("sentinel", limit, exchange.exchange(&questions)).await??;
            let answer = read(&replies, asked, &address)?;
            let answer = translated(shared, places, answer).await?;
            *failed = 0;
            let now = clock::now();
            if let Some(switch) = discovery.hear(at, answer, now) {
                least = LEAST;
                shared.primary_moved(&switch);
            }
            let pause = every.mul_f64(0.9 - 0.2 * rng.f64());
            // A fleet that has lost its primary is not to strike in step, nor for ever as often.
            let soonest = asked + least.mul_f64(0.5 + rng.f64());
            least = tokio::select! {
                () = tokio::time::sleep(pause) => LEAST,
                () = wanted_again(&mut wanted, soonest) => (least * 3 / 2).min(MOST),
                () = wanted_again(&mut told, asked + TOLD) => LEAST,
            };
        }
    };
    let never: Result<std::convert::Infallible, ConnectError> = asking.await;
    match never {
        Err(error) => error,
    }
}

/// Listens for `+switch-master`, which is a reason to ask.
async fn listen(
    shared: &Arc<Shared>,
    discovery: &Discovery,
    places: &Apart,
    at: &Endpoint,
    failed: &mut u32,
) -> ConnectError {
    let listening = async {
        let limit = shared.settings.connect_timeout;
        let (mut stream, address) = reach(shared, discovery, places, at).await?;
        let mut exchange = Exchange::limited(&mut stream, &address, limits());
        let subscribe = [command(&["SUBSCRIBE", "+switch-master"])];
        let replies = within("sentinel", limit, exchange.exchange(&subscribe)).await??;
        refused(&replies)?;
        *failed = 0;
        // It may have switched before this listened.
        discovery.want();
        let mut asked = false;
        loop {
            let pause = if asked { limit } else { LISTEN };
            match clock::timeout(pause, exchange.reply()).await {
                Some(reply) => {
                    let reply = reply?;
                    asked = false;
                    if tells_of(&reply, &discovery.service) {
                        discovery.tell();
                    }
                }
                None if asked => {
                    let phase = "sentinel";
                    return Err(ConnectError::TimedOut { phase, limit });
                }
                None => {
                    asked = true;
                    exchange.send(&command(&["PING"])).await?;
                }
            }
        }
    };
    let never: Result<std::convert::Infallible, ConnectError> = listening.await;
    match never {
        Err(error) => error,
    }
}

/// The answer, with the addresses by which those that it names can be reached from here.
async fn translated(
    shared: &Shared,
    places: &Apart,
    mut answer: Answer,
) -> Result<Answer, ConnectError> {
    let translation = shared.settings.translation.clone();
    if translation.is_none() {
        return Ok(answer);
    }
    let translates = async move {
        answer.translate(&translation);
        Ok(answer)
    };
    let limit = shared.settings.connect_timeout;
    shared.apart(places, limit, translates).await
}

/// A connection to a sentinel, in a task of its own: a provider and a resolver have a part in it.
async fn reach(
    shared: &Arc<Shared>,
    discovery: &Discovery,
    places: &Apart,
    at: &Endpoint,
) -> Result<(Stream, String), ConnectError> {
    let (service, at) = (Arc::clone(&discovery.service), at.clone());
    let settings = Arc::clone(&shared.settings);
    // Credentials, DNS, and TCP, TLS and greeting of the slowest of its addresses.
    let limit = settings.connect_timeout.saturating_mul(6);
    let reaches = async move { reach_at_any(&settings, &service, &at).await };
    shared.apart(places, limit, reaches).await
}

/// The same, at whichever of its addresses one answers.
async fn reach_at_any(
    settings: &Settings,
    service: &str,
    at: &Endpoint,
) -> Result<(Stream, String), ConnectError> {
    let limit = settings.connect_timeout;
    let credentials = match &settings.sentinel_provider {
        Some(provider) => {
            let had = within("credentials", limit, provider.credentials()).await?;
            Some(had.map_err(|error| ConnectError::Credentials(error.to_string()))?)
        }
        None => settings.target.sentinel_credentials.clone(),
    };
    let greet = async |(mut stream, address): (Stream, String), is_only| {
        let mut exchange = Exchange::limited(&mut stream, &address, limits());
        if let Some(credentials) = &credentials {
            log_in(&mut exchange, credentials, &address).await?;
        }
        is_a_sentinel(&mut exchange, service, &address, is_only).await?;
        Ok((stream, address))
    };
    let greet = |stream, address, is_only| {
        let greeted = greet((stream, address), is_only);
        async move { within("sentinel", limit, greeted).await? }
    };
    dial_sentinel(settings, at, limit, greet).await
}

async fn log_in(
    exchange: &mut Exchange<'_>,
    credentials: &Credentials,
    address: &str,
) -> Result<(), ConnectError> {
    let words = match credentials.user() {
        "" | "default" => command(&["AUTH", credentials.password()]),
        _ => auth(credentials),
    };
    let replies = exchange.exchange(&[words]).await?;
    refused(&replies)?;
    match replies[..] {
        [Value::Okay] => Ok(()),
        _ => Err(ConnectError::NotSentinel {
            address: address.into(),
            why: "it answers AUTH by what is no answer to it".into(),
        }),
    }
}

/// Who answers this is a sentinel. One of several under the same name must know the primary, too:
/// another of them may.
async fn is_a_sentinel(
    exchange: &mut Exchange<'_>,
    service: &str,
    address: &str,
    is_only: bool,
) -> Result<(), ConnectError> {
    let question = command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", service]);
    let replies = exchange.exchange(&[question]).await?;
    if is_reason(&replies[0]) {
        refused(&replies)?;
    }
    let no_sentinel = |why: String| ConnectError::NotSentinel {
        address: address.into(),
        why,
    };
    let primary = primary_address(&replies[0]).map_err(|error| no_sentinel(error.to_string()))?;
    match primary.is_some() || is_only {
        true => Ok(()),
        false => Err(ConnectError::NoPrimary {
            service: service.into(),
            why: format!("{address} watches none of this name"),
        }),
    }
}

/// ERR is what a server says that is no sentinel, or of a name that it does not know. Other codes
/// (NOAUTH, NOPERM, IDONTKNOW) say why one that may be a sentinel does not answer.
fn is_reason(reply: &Value) -> bool {
    as_error(reply).is_some_and(|(code, _)| code != "ERR")
}

/// The epoch before the address: see [`steadfast_core::report::MonitoredPrimary`].
fn questions(service: &str) -> [Vec<u8>; 5] {
    [
        command(&["SENTINEL", "MYID"]),
        command(&["SENTINEL", "MASTER", service]),
        command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", service]),
        command(&["SENTINEL", "SENTINELS", service]),
        command(&["SENTINEL", "REPLICAS", service]),
    ]
}

fn read(replies: &[Value], asked: Instant, address: &str) -> Result<Answer, ConnectError> {
    let no_sentinel = |why: String| ConnectError::NotSentinel {
        address: address.into(),
        why,
    };
    let [own, monitored, primary, peers, replicas] = replies else {
        return Err(no_sentinel("it leaves questions unanswered".into()));
    };
    // What is left out without the last is a list to look at.
    let mut needed = replies.iter().skip(1).take(3);
    if let Some(reply) = needed.find(|reply| is_reason(reply)) {
        refused(std::slice::from_ref(reply))?;
    }
    let primary = primary_address(primary).map_err(|error| no_sentinel(error.to_string()))?;
    let monitored = match (MonitoredPrimary::read(monitored), &primary) {
        (Ok(monitored), _) => monitored,
        // It watches none of this name.
        (Err(_), None) => MonitoredPrimary {
            config_epoch: 0,
            run_id: None,
            other_sentinels: 0,
            quorum: 0,
            subjectively_down: false,
            objectively_down: false,
            failing_over: false,
        },
        (Err(error), Some(_)) => return Err(no_sentinel(error.to_string())),
    };
    let peers = PeerSentinel::read_all(peers).map_or_else(|_| Vec::new(), |(peers, _)| peers);
    let sentinel = match own {
        Value::BulkString(id) if id.len() <= MAX_NAME => {
            std::str::from_utf8(id).ok().map(Arc::from)
        }
        _ => None,
    };
    let testimony = Testimony {
        primary,
        monitored,
        sentinel,
        asked,
    };
    let replicas = SentinelReplica::read_all(replicas).ok();
    Ok(Answer {
        testimony,
        peers,
        replicas: replicas.map(|(replicas, _)| replicas),
    })
}

fn refused(replies: &[Value]) -> Result<(), ConnectError> {
    let Some((code, text)) = replies.iter().find_map(as_error) else {
        return Ok(());
    };
    let said = format!("{code} {}", without_arguments(text));
    Err(match code.as_str() {
        "NOAUTH" | "NOPERM" | "WRONGPASS" => ConnectError::Auth(format!(
            "{said} (a sentinel has credentials of its own: sentinel_user and sentinel_password)"
        )),
        _ => ConnectError::Refused(said),
    })
}

/// Returns whether a message tells of a switch of this primary, or of one that cannot be read.
fn tells_of(reply: &Value, service: &str) -> bool {
    let parts = match reply {
        Value::Array(parts) => parts,
        Value::Push { data, .. } => data,
        _ => return false,
    };
    let [.., kind, _, payload] = &parts[..] else {
        return false;
    };
    matches!(kind, Value::BulkString(kind) if kind == b"message")
        && SwitchMaster::read(payload).map_or(true, |switch| &*switch.name == service)
}

impl Shared {
    /// The sentinels name another primary: from now on nothing that the old one answers counts.
    fn primary_moved(&self, switch: &Switch) {
        if let Some(discovery) = &self.discovery {
            discovery.note(switch);
        }
        let cause = format!("the sentinels name {} as the primary", switch.to.primary);
        let cause: Arc<str> = cause.into();
        // What serves is ended by its supervisor, which knows the term of it: an order from here
        // could meet the next.
        for link in &self.links {
            link.reset(link.epoch(), &cause);
        }
        // Those of sessions and blocking calls, and those that finish what they have begun.
        for queue in self.fences.dedicated_queues() {
            queue.command(DriverCommand::Depose(Arc::clone(&cause)));
        }
        self.following.moved();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &str) -> Value {
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        Value::Array(vec![text("message"), text("+switch-master"), text(payload)])
    }

    #[test]
    fn t17_only_the_switch_of_this_primary_is_a_reason_to_ask() {
        assert!(tells_of(&message("main h 1 h 2"), "main"));
        assert!(!tells_of(&message("other h 1 h 2"), "main"));
        assert!(tells_of(&message("nonsense"), "main"), "it may be");
        let pong = [
            Value::BulkString(b"pong".to_vec()),
            Value::BulkString(Vec::new()),
        ];
        assert!(!tells_of(&Value::Array(pong.into()), "main"));
        assert!(!tells_of(&Value::Okay, "main"));
    }

    #[test]
    fn c16_a_sentinel_that_knows_no_auth_cannot_make_us_tell_the_password() {
        let said = b"-ERR unknown command 'AUTH', with args beginning with: 'u' 's3cret'\r\n";
        let reply = redis::parse_redis_value(said).expect("it is an error");
        let error = refused(&[reply]).expect_err("it is refused").to_string();
        assert!(
            error.contains("unknown command") && !error.contains("s3cret"),
            "{error}"
        );
    }
}
