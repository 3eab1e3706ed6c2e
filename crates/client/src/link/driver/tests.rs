//! Of a driver alone, in virtual time, before a server that says what the test wants.

use std::future::Future;

use futures_util::FutureExt;
use redis::Value;
use steadfast_core::conn::Reply;
use steadfast_core::policy::breaker::State;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::*;
use crate::settings::Settings;
use crate::target::Target;
use crate::wire::identity::Identity;
use crate::wire::queue::{DriverCommand, Submission, Submitted, TxStep};

const SECOND: Duration = Duration::from_secs(1);
const MOMENT: Duration = Duration::from_millis(10);

struct Rig {
    shared: Arc<Shared>,
    queue: Arc<SubmitQueue>,
    server: DuplexStream,
    driver: Pin<Box<dyn Future<Output = Finished>>>,
    /// What is told of the connection.
    signals: mpsc::UnboundedReceiver<Signal>,
}

impl Rig {
    fn new() -> Self {
        Self::of_link(Some(0))
    }

    fn of_link(link: Option<usize>) -> Self {
        let settings = Settings::new(Target::parse("redis://h").expect("a good url"));
        let shared = Shared::new(settings, clock::now()).expect("good settings");
        let queue = Arc::clone(&shared.links[0].queue);
        let (ours, server) = tokio::io::duplex(64 << 10);
        let (told, signals) = mpsc::unbounded_channel();
        let watch = Watch {
            doubtful: 2 * SECOND,
            response_idle_timeout: 4 * SECOND,
            heartbeat: SECOND,
        };
        let stream = Stream::Memory(ours);
        let shared = Arc::new(shared);
        let of_all = Arc::clone(&shared);
        let driver = Driver::new(of_all, Arc::clone(&queue), link, stream, watch, told, None);
        Self {
            shared,
            queue,
            server,
            driver: Box::pin(driver.run()),
            signals,
        }
    }

    /// Has the driver do all that there is to do; the end, if it is one.
    async fn turn(&mut self) -> Option<Finished> {
        for _ in 0..20 {
            if let Poll::Ready(finished) = futures_util::poll!(&mut self.driver) {
                return Some(finished);
            }
            tokio::task::yield_now().await;
        }
        None
    }

    /// Lets time pass, in which the driver has its turns.
    async fn pass(&mut self, time: Duration) -> Option<Finished> {
        let until = clock::now() + time;
        while clock::now() < until {
            tokio::time::advance(MOMENT).await;
            if let Some(finished) = self.turn().await {
                return Some(finished);
            }
        }
        None
    }

    fn submit(&self, command: &str, limit: Duration) -> Submitted {
        self.submit_as(command, lasting(limit))
    }

    fn submit_as(&self, command: &str, submission: Submission) -> Submitted {
        let submitted = self.queue.submit(submission, |out: &mut Vec<u8>| {
            out.extend_from_slice(command.as_bytes());
            out.len()
        });
        submitted.expect("there is room")
    }

    async fn say(&mut self, bytes: &str) {
        let said = self.server.write_all(bytes.as_bytes()).await;
        said.expect("there is room");
    }

    /// Returns what has been sent to the server since this was last asked.
    async fn heard(&mut self) -> String {
        let mut bytes = Vec::with_capacity(1024);
        let _ = self.server.read_buf(&mut bytes).now_or_never();
        String::from_utf8(bytes).expect("it is text")
    }
}

fn lasting(limit: Duration) -> Submission {
    let now = clock::now();
    Submission {
        replies: 1,
        started: now,
        deadline: now + limit,
        now,
        seq: None,
        only_fenced: false,
        read_only: false,
        apart: false,
    }
}

fn apart(limit: Duration) -> Submission {
    Submission {
        apart: true,
        ..lasting(limit)
    }
}

fn read(limit: Duration) -> Submission {
    Submission {
        read_only: true,
        ..lasting(limit)
    }
}

fn abandoned() -> Identity {
    Identity {
        id: 7,
        addr: "127.0.0.1:1".into(),
        run_id: None,
    }
}

#[track_caller]
fn ended(submitted: Submitted) -> Ended {
    submitted.pending.now_or_never().expect("it has ended")
}

#[tokio::test(start_paused = true)]
async fn c19_what_waited_to_be_taken_while_this_process_stood_still_says_nothing_of_the_server() {
    let mut rig = Rig::new();
    rig.turn().await;
    let waited = [SECOND * 2, SECOND * 9].map(|limit| rig.submit("x", limit));
    // The timer is due after a second.
    tokio::time::advance(SECOND * 3 / 2).await;
    rig.turn().await;
    assert_eq!(rig.heard().await, "xx");
    rig.pass(SECOND).await;
    rig.say("+late\r\n+OK\r\n").await;
    rig.turn().await;
    let later = [SECOND / 2, SECOND].map(|limit| rig.submit("y", limit));
    rig.turn().await;
    rig.pass(SECOND * 3 / 4).await;
    rig.say("+late\r\n+OK\r\n").await;
    rig.turn().await;
    for ([expired, answered], counts) in [(waited, false), (later, true)] {
        let Ended::Expired { certainty, fair } = ended(expired) else {
            panic!("its time was up");
        };
        assert_eq!((certainty, fair), (Certainty::Unknown, counts));
        let Ended::Answered { reply, fair, .. } = ended(answered) else {
            panic!("it was answered");
        };
        assert_eq!((reply, fair), (Reply::One(Value::Okay), counts));
    }
    assert!(rig.signals.try_recv().is_err(), "nor is it silent");
}

#[tokio::test(start_paused = true)]
async fn c10_good_replies_are_counted_now_and_then_and_all_of_them_at_the_end() {
    let mut rig = Rig::new();
    let mut answered = 0;
    let told = |rig: &Rig| {
        rig.shared
            .answered
            .load(std::sync::atomic::Ordering::Relaxed)
    };
    // The last says nothing good of the server.
    for replies in ["+OK\r\n", "+OK\r\n-ERR it is wrong\r\n", "-LOADING\r\n"] {
        let count = replies.matches("\r\n").count();
        let asked: Vec<_> = (0..count).map(|_| rig.submit("x", SECOND)).collect();
        rig.turn().await;
        rig.say(replies).await;
        rig.pass(SECOND / 5).await;
        asked.into_iter().for_each(|one| drop(ended(one)));
        answered += replies.matches('+').count() + replies.matches("ERR").count();
        assert_eq!(told(&rig), answered as u64, "{replies:?}");
    }
    let _asked = rig.submit("x", SECOND);
    rig.turn().await;
    rig.say("+OK\r\n").await;
    rig.turn().await;
    assert_eq!(told(&rig), answered as u64, "it was told a moment ago");
    assert_eq!(rig.shared.breaker.untold(), 1, "nor was its lock taken");
    rig.queue.command(DriverCommand::Abandon("over".into()));
    let finished = rig.turn().await.expect("it is told to end");
    assert_eq!(&*finished.cause, "over");
    assert!(finished.ordered && !finished.blames);
    assert_eq!(told(&rig), answered as u64 + 1);
}

#[tokio::test(start_paused = true)]
async fn those_that_were_answered_together_may_ask_again_before_the_driver_parks() {
    struct Woken(std::sync::atomic::AtomicBool);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    }
    for (together, yields) in [(1, false), (2, true), (3, true)] {
        let mut rig = Rig::new();
        let _asked: Vec<_> = (0..together).map(|_| rig.submit("x", SECOND)).collect();
        rig.turn().await;
        rig.say(&"+OK\r\n".repeat(together)).await;
        let woken = Arc::new(Woken(false.into()));
        let waker = std::task::Waker::from(Arc::clone(&woken));
        let polled = rig.driver.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        let woke_itself = woken.0.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(woke_itself, yields, "{together}");
    }
}

#[tokio::test(start_paused = true)]
async fn c12_the_rarer_a_drivers_turns_are_the_more_it_hands_out_in_each() {
    const ASKED: usize = 1000;
    let left = |rig: &Rig| rig.queue.serving.lock().as_ref().map_or(0, Conn::awaiting);
    // How long all others took, and whether all that is left is handed out then.
    for (millis, is_all) in [(1, false), (2, true), (500, true)] {
        let mut rig = Rig::new();
        let _asked: Vec<_> = (0..ASKED).map(|_| rig.submit("x", 9 * SECOND)).collect();
        rig.turn().await;
        rig.say(&"+OK\r\n".repeat(ASKED)).await;
        let _ = futures_util::poll!(&mut rig.driver);
        assert!(left(&rig) > ASKED * 9 / 10, "{} are left", left(&rig));
        tokio::time::advance(Duration::from_millis(millis)).await;
        let _ = futures_util::poll!(&mut rig.driver);
        assert_eq!(
            left(&rig) == 0,
            is_all,
            "{millis} ms: {} are left",
            left(&rig)
        );
        assert!(rig.pass(MOMENT).await.is_none());
        assert_eq!(left(&rig), 0);
    }
}

#[test]
fn c12_a_turn_lasts_an_eighth_of_all_others_and_never_long() {
    let turn = |micros| replies::long_turn(Duration::from_micros(micros));
    assert_eq!(turn(1000), None);
    assert_eq!(turn(1600), Some(Duration::from_micros(200)));
    assert_eq!(turn(60_000_000), Some(Duration::from_millis(1)));
}

#[tokio::test(start_paused = true)]
async fn c1_a_connection_that_is_never_idle_keeps_the_deadlines_of_its_calls() {
    // Turns that are rare and that are not; answers of a wave and of less in each.
    for (millis, answers) in [(2, 100), (2, 5), (1, 100), (1, 5)] {
        let mut rig = Rig::new();
        let _others: Vec<_> = (0..5000).map(|_| rig.submit("x", 9 * SECOND)).collect();
        let late = rig.submit("x", MOMENT);
        rig.turn().await;
        for _ in 0..20 {
            rig.say(&"+OK\r\n".repeat(answers)).await;
            let _ = futures_util::poll!(&mut rig.driver);
            tokio::time::advance(Duration::from_millis(millis)).await;
        }
        let ended = late.pending.now_or_never();
        let expired = matches!(ended, Some(Ended::Expired { .. }));
        assert!(expired, "{answers} answers each {millis} ms: {ended:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn c19_each_request_of_a_driver_that_is_dropped_is_told_what_is_known_of_it() {
    for link in [Some(0), None] {
        let mut rig = Rig::of_link(link);
        let written = rig.submit("x", SECOND);
        // More than the socket takes.
        let begun = rig.submit(&"x".repeat(100_000), SECOND);
        rig.turn().await;
        rig.driver = Box::pin(std::future::pending());
        for (request, known) in [(written, Certainty::Unknown), (begun, Certainty::NotSent)] {
            let Ended::Lost {
                certainty, cause, ..
            } = ended(request)
            else {
                panic!("its connection is lost");
            };
            assert_eq!(certainty, known);
            assert!(cause.contains("runtime"), "{cause}");
        }
        assert_eq!(rig.queue.in_flight(), 0);
        // Nobody comes after on a connection of one caller.
        let ends = matches!(rig.queue.gate(), Gate::Ended(_));
        assert_eq!(ends, link.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn c12_while_the_socket_takes_no_more_what_nobody_waits_for_is_taken_out() {
    let mut rig = Rig::new();
    // More than the socket takes.
    let begun = rig.submit(&"x".repeat(100_000), SECOND);
    let [first, second, third] = [(); 3].map(|()| rig.submit("y", SECOND));
    rig.turn().await;
    assert_eq!(rig.queue.in_flight(), 4);
    drop((begun, first));
    rig.pass(MOMENT).await;
    assert_eq!(rig.queue.in_flight(), 3, "what was begun stays");
    drop(second);
    rig.turn().await;
    assert_eq!(rig.queue.in_flight(), 3, "that was looked for a moment ago");
    rig.pass(MOMENT).await;
    assert_eq!(rig.queue.in_flight(), 2);
    while rig.heard().await.len() > 1 {
        rig.turn().await;
    }
    rig.say("+OK\r\n+OK\r\n").await;
    rig.turn().await;
    assert!(matches!(ended(third), Ended::Answered { .. }));
    assert_eq!(rig.queue.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn c7_the_end_of_a_silence_says_how_many_of_unknown_outcome_were_given_up_meanwhile() {
    let mut rig = Rig::new();
    let begun = clock::now();
    let _given_up = [3, 5, 5].map(|seconds| rig.submit("x", seconds * SECOND));
    let patient = rig.submit(&"x".repeat(100_000), 60 * SECOND);
    let unwritten = rig.submit("x", 5 * SECOND);
    rig.turn().await;
    rig.pass(2 * SECOND).await;
    assert!(matches!(rig.signals.try_recv(), Ok(Signal::Doubtful)));
    rig.pass(2 * SECOND).await;
    let Ok(Signal::Unresponsive {
        quiet,
        last,
        on_its_way,
    }) = rig.signals.try_recv()
    else {
        panic!("it is silent");
    };
    assert_eq!((quiet, on_its_way), (4 * SECOND, false));
    assert_eq!(last, Some(begun + 60 * SECOND));
    // Whose turn it is was given up before.
    assert!(matches!(rig.signals.try_recv(), Ok(Signal::Stuck(_))));
    rig.pass(2 * SECOND).await;
    let Ended::Expired { certainty, .. } = ended(unwritten) else {
        panic!("its time was up");
    };
    assert_eq!(certainty, Certainty::NotSent);
    while rig.heard().await.len() > 1 {
        rig.turn().await;
    }
    rig.say("+late\r\n+late\r\n+late\r\n+OK\r\n").await;
    rig.turn().await;
    let Ok(Signal::Recovered(quiet, given_up)) = rig.signals.try_recv() else {
        panic!("it is no longer");
    };
    assert_eq!((quiet, given_up), (6 * SECOND, 2));
    assert!(matches!(ended(patient), Ended::Answered { .. }));
}

#[tokio::test(start_paused = true)]
async fn c20_what_comes_behind_one_that_travels_apart_waits_for_it_but_not_for_ever() {
    let mut rig = Rig::new();
    let patience = rig.shared.settings.response_idle_timeout;
    let limit = 9 * patience;
    let _asked = [
        rig.submit_as("a", apart(limit)),
        rig.submit("b", limit),
        rig.submit("c", limit),
    ];
    rig.turn().await;
    assert_eq!(rig.heard().await, "a");
    rig.pass(patience - 2 * MOMENT).await;
    assert_eq!(rig.heard().await, "", "it is not answered");
    rig.pass(4 * MOMENT).await;
    assert_eq!(rig.heard().await, "bc", "they have waited enough");
    let _asked = rig.submit_as("d", apart(limit));
    let _behind = rig.submit("e", limit);
    rig.turn().await;
    assert_eq!(rig.heard().await, "", "others are under way");
    rig.say("+a\r\n+b\r\n+c\r\n").await;
    rig.turn().await;
    assert_eq!(rig.heard().await, "d");
    rig.say("+d\r\n").await;
    rig.turn().await;
    assert_eq!(rig.heard().await, "e", "it is answered");
}

#[tokio::test(start_paused = true)]
async fn c9_slow_replies_open_the_breaker_unless_their_calls_were_given_longer_than_usual() {
    for (longer, state) in [(MOMENT, State::Closed), (Duration::ZERO, State::Open)] {
        let mut rig = Rig::new();
        let limit = rig.shared.settings.deadline + longer;
        let slow = rig.shared.settings.breaker.slow_call.expect("a default");
        let _asked: Vec<_> = (0..30).map(|_| rig.submit("x", limit)).collect();
        rig.turn().await;
        rig.pass(slow + MOMENT).await;
        rig.say(&"+OK\r\n".repeat(30)).await;
        rig.turn().await;
        assert_eq!(rig.shared.breaker.state(), state, "{longer:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn c12_what_has_waited_for_a_connection_and_nobody_waits_for_any_more_is_not_sent() {
    let mut rig = Rig::new();
    let [gone, waited] = ["a", "b"].map(|command| rig.submit(command, SECOND));
    let steps = vec![(0, TxStep::Multi)];
    let begun = rig
        .queue
        .submit_transition(steps, lasting(SECOND), |out: &mut Vec<u8>| {
            out.extend_from_slice(b"MULTI");
            out.len()
        });
    // It may not come in the midst of a transaction.
    rig.queue.command(DriverCommand::Fence(abandoned()));
    drop((gone, begun.expect("there is room")));
    tokio::time::advance(MOMENT).await;
    rig.turn().await;
    let heard = rig.heard().await;
    assert!(heard.starts_with('b'), "{heard}");
    assert!(heard.contains("KILL"), "no transaction was begun: {heard}");
    assert!(!heard.contains("MULTI"), "{heard}");
    rig.say("+OK\r\n:1\r\n").await;
    rig.turn().await;
    assert!(matches!(ended(waited), Ended::Answered { .. }));
    assert_eq!(rig.queue.in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn c7_a_silent_connection_yields_to_its_standby_unless_bytes_have_come_after_all() {
    for (silence, bytes, yields) in [
        (SECOND, "", false),
        (SECOND * 5, "+OK\r\n", false),
        (SECOND * 5, "", true),
    ] {
        let mut rig = Rig::new();
        let asked = rig.submit("x", SECOND * 9);
        rig.turn().await;
        rig.pass(silence).await;
        rig.say(bytes).await;
        rig.queue.command(DriverCommand::Yield("a standby".into()));
        let finished = rig.turn().await;
        assert_eq!(finished.is_some(), yields, "{silence:?} {bytes:?}");
        if let Some(finished) = finished {
            assert_eq!(&*finished.cause, "a standby");
            assert!(finished.ordered && finished.blames);
        }
        let ended = asked.pending.now_or_never();
        let answered = matches!(ended, Some(Ended::Answered { .. }));
        assert_eq!(answered, !bytes.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn c7_a_connection_that_steps_aside_leaves_reads_and_what_is_not_begun_to_the_standby() {
    let limit = SECOND * 3;
    let mut rig = Rig::new();
    let looked = rig.submit_as("r", read(limit));
    let written = rig.submit("w", limit);
    // More than the socket takes.
    let begun = rig.submit(&"b".repeat(100_000), limit);
    let unsent = rig.submit("u", limit);
    rig.turn().await;
    let (hold, mut held) = mpsc::channel(1);
    let aside = rig.queue.aside();
    let step = DriverCommand::StepAside(Arc::clone(&aside), hold);
    rig.queue.command(step);
    assert!(rig.turn().await.is_none(), "it finishes what it has");
    assert!(matches!(rig.signals.try_recv(), Ok(Signal::Aside)));
    assert!(rig.queue.serving.lock().is_none(), "its place is free");
    let left = [(looked, Certainty::Unknown), (unsent, Certainty::NotSent)];
    for (left, known) in left {
        let Ended::Lost {
            certainty,
            rejoin,
            blame,
            ..
        } = ended(left)
        else {
            panic!("its connection is lost to it");
        };
        assert_eq!((certainty, blame), (known, Blame::None));
        let before = held.try_recv();
        assert_eq!(before, Err(mpsc::error::TryRecvError::Empty));
        assert!(rejoin.is_some(), "the standby waits for it");
    }
    assert_eq!(held.recv().await, None, "all have come back");
    let mut heard = String::new();
    while heard.len() < 100_002 {
        heard += &rig.heard().await;
        assert!(rig.turn().await.is_none());
    }
    assert!(!heard.contains('u'));
    rig.say("+r\r\n+w\r\n+b\r\n").await;
    let finished = rig.turn().await.expect("it has finished what it had");
    assert!(finished.ordered && !finished.blames);
    for answered in [written, begun] {
        assert!(matches!(ended(answered), Ended::Answered { .. }));
    }

    // With nothing of its own left it ends at once, though nobody has answered it.
    let mut rig = Rig::new();
    let _looked = rig.submit_as("r", read(limit));
    rig.turn().await;
    let (hold, _held) = mpsc::channel(1);
    let step = DriverCommand::StepAside(rig.queue.aside(), hold);
    rig.queue.command(step);
    assert!(rig.turn().await.is_some());
}

#[tokio::test(start_paused = true)]
async fn c18_a_server_that_could_not_kill_an_abandoned_connection_is_asked_again_and_no_other() {
    for link in [Some(0), None] {
        let mut rig = Rig::of_link(link);
        for (answer, again) in [
            (":1\r\n", false),
            ("-LOADING\r\n", true),
            ("-ERR No such client\r\n", false),
        ] {
            rig.queue.command(DriverCommand::Fence(abandoned()));
            rig.turn().await;
            assert!(rig.heard().await.contains("KILL"));
            rig.say(answer).await;
            rig.turn().await;
            let loose = match rig.signals.try_recv() {
                Ok(Signal::Unfenced(identity)) => Some(*identity),
                Ok(signal) => panic!("{signal:?}"),
                Err(_) => None,
            };
            assert_eq!(loose, again.then(abandoned), "{answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn c16_credentials_that_come_between_the_answer_and_its_proof_are_given_too() {
    let mut rig = Rig::of_link(None);
    let give = |rig: &Rig, words: &str| {
        let words = words.as_bytes().to_vec();
        rig.queue.command(DriverCommand::Reauthenticate(words));
    };
    give(&rig, "first;");
    rig.turn().await;
    let heard = rig.heard().await;
    let nonce = heard.rsplit("\r\n").nth(1).expect("it is asked to echo");
    assert!(heard.starts_with("first;"), "{heard}");
    rig.say("+OK\r\n").await;
    rig.turn().await;
    assert!(matches!(
        rig.signals.try_recv(),
        Ok(Signal::Reauthenticated(None))
    ));
    give(&rig, "second;");
    rig.turn().await;
    rig.say(&format!("${}\r\n{nonce}\r\n", nonce.len())).await;
    rig.turn().await;
    let heard = rig.heard().await;
    assert!(heard.starts_with("second;"), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn c7_a_connection_that_retires_may_still_step_aside() {
    let limit = SECOND * 100;
    let mut rig = Rig::new();
    let looked = rig.submit_as("r", read(limit));
    let written = rig.submit("w", limit);
    rig.turn().await;
    rig.queue.command(DriverCommand::Retire("it is old".into()));
    assert!(rig.turn().await.is_none());
    let waits = rig.submit("x", limit);
    let (hold, _held) = mpsc::channel(1);
    let step = DriverCommand::StepAside(rig.queue.aside(), hold);
    rig.queue.command(step);
    assert!(rig.turn().await.is_none(), "it finishes what it has");
    assert!(matches!(rig.signals.try_recv(), Ok(Signal::Aside)));
    assert!(rig.queue.serving.lock().is_none(), "its place is free");
    assert!(matches!(ended(looked), Ended::Lost { .. }));
    rig.say("+r\r\n+w\r\n").await;
    let finished = rig.turn().await.expect("it has finished what it had");
    assert!(finished.ordered && !finished.blames);
    assert!(matches!(ended(written), Ended::Answered { .. }));
    assert!(waits.pending.now_or_never().is_none(), "for the next");
}
