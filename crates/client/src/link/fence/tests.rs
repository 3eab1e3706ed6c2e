use super::*;
use crate::clock;
use crate::error::Certainty;
use crate::link::shared::Shared;
use crate::settings::Settings;
use crate::target::Target;
use crate::wire::queue::{Backlog, Submission};

fn shared(connections: usize) -> Shared {
    let mut settings = Settings::new(Target::parse("redis://h").expect("a good url"));
    settings.connections = connections;
    Shared::new(settings, clock::now()).expect("good settings")
}

fn relying() -> Submission {
    let now = clock::now();
    Submission {
        replies: 1,
        started: now,
        deadline: now + Duration::from_secs(1),
        now,
        seq: None,
        only_fenced: true,
        read_only: false,
        apart: false,
    }
}

fn identity(id: i64) -> Identity {
    let addr = "127.0.0.1:1".into();
    let run_id = None;
    Identity { id, addr, run_id }
}

fn error(line: &str) -> Value {
    redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).expect("an error reply")
}

#[test]
fn c18_only_what_is_known_to_pass_keeps_a_server_that_does_not_kill_out_of_service() {
    for (reply, fence) in [
        (Value::Int(1), Fence::Done),
        (Value::Int(0), Fence::Done),
        (error("ERR No such client"), Fence::Done),
        (error("LOADING Redis is loading"), Fence::NotNow),
        (error("BUSY Redis is busy"), Fence::NotNow),
        (error("ERR max number of clients reached"), Fence::NotNow),
    ] {
        assert_eq!(Fence::of(&reply), Some(fence), "{reply:?}");
    }
    let queued = Value::SimpleString("QUEUED".into());
    for odd in [Value::Nil, Value::Okay, queued] {
        assert_eq!(Fence::of(&odd), None, "{odd:?} is no answer");
    }
    for line in [
        "NOPERM this user has no permissions to run the 'client|kill' command",
        "ERR unknown command 'CLIENT'",
        "ERR syntax error",
        "ERR value is not an integer or out of range",
        "ERR command is not allowed",
        "DENIED by the proxy",
    ] {
        assert!(
            matches!(Fence::of(&error(line)), Some(Fence::Refused(_))),
            "{line}"
        );
    }
}

fn noperm() -> Reply {
    let error = redis::parse_redis_value(b"-NOPERM this user has no permissions\r\n");
    let Ok(refused @ Value::ServerError(_)) = error else {
        panic!("it is an error: {error:?}");
    };
    Reply::One(refused)
}

fn done() -> Reply {
    Reply::One(Value::Int(1))
}

fn refusals(shared: &Shared) -> usize {
    let history = shared.hub.history();
    let refused = |event: &&crate::event::Event| event.kind.name() == "fence_refused";
    history.iter().filter(refused).count()
}

#[test]
fn c18_once_a_kill_is_refused_nothing_that_relies_on_one_is_sent() {
    let shared = shared(1);
    let queue = &shared.links[0].queue;
    let submission = relying();
    let _pending = queue
        .submit(submission, |out: &mut Vec<u8>| out.len())
        .expect("it may be killed");
    assert_eq!(
        shared
            .fences
            .fence_answered(Some(0), &identity(1), &noperm()),
        Some(true)
    );
    assert_eq!(shared.fences.fencing(), Fencing::Refused);
    assert_eq!(queue.in_flight(), 0, "what waited is turned away");
    let late = queue.submit(submission, |out: &mut Vec<u8>| out.len());
    let error = late.expect_err("it was looked at before that was known");
    assert_eq!(error.certainty(), Certainty::NotSent);
}

#[test]
fn c18_one_kill_that_succeeds_does_not_make_up_for_one_that_was_refused() {
    let shared = shared(1);
    let link = &shared.links[0];
    let state = || (shared.fences.fencing(), link.queue.may_be_fenced());
    shared.fences.serves(link, &Ok(()), &[], &[]);
    assert_eq!(state(), (Fencing::Works, true));
    shared
        .fences
        .fence_answered(Some(0), &identity(1), &noperm());
    shared.fences.fence_answered(Some(0), &identity(2), &done());
    assert_eq!(state(), (Fencing::Refused, false), "while it serves");
    // Nor in a handshake, in whatever order.
    let refused = || Fence::Refused("NOPERM".into());
    for fences in [[refused(), Fence::Done], [Fence::Done, refused()]] {
        link.queue.release();
        shared
            .fences
            .serves(link, &Ok(()), &[identity(1), identity(2)], &fences);
        assert_eq!(state(), (Fencing::Refused, false), "{fences:?}");
    }
    link.queue.release();
    shared
        .fences
        .serves(link, &Ok(()), &[identity(1)], &[Fence::Done]);
    assert_eq!(state(), (Fencing::Works, true));
    assert_eq!(refusals(&shared), 1, "told once, as it changed");
}

#[test]
fn c18_what_one_connection_is_refused_is_not_granted_by_another() {
    let shared = shared(2);
    let [first, second] = &shared.links[..] else {
        panic!("there are two");
    };
    assert_eq!(shared.fences.fencing(), Fencing::Untried);
    shared.fences.serves(first, &Err("NOPERM".into()), &[], &[]);
    shared.fences.serves(second, &Ok(()), &[], &[]);
    assert_eq!(shared.fences.fencing(), Fencing::Refused);
    first.queue.release();
    assert_eq!(
        shared.fences.fencing(),
        Fencing::Refused,
        "nobody knows better yet"
    );
    shared.fences.serves(first, &Ok(()), &[], &[]);
    assert_eq!(shared.fences.fencing(), Fencing::Works);
}

#[test]
fn c18_an_abandoned_connection_that_was_refused_is_killed_by_the_next_connection_that_may() {
    let shared = shared(1);
    let link = &shared.links[0];
    shared.fences.serves(link, &Ok(()), &[], &[]);
    link.open(clock::now());
    shared.fences.fence(Some(identity(1)));
    assert_eq!(link.queue.take_commands(Backlog::default()).len(), 1);
    shared
        .fences
        .fence_answered(Some(0), &identity(1), &noperm());
    // The next one may not either, and is asked once.
    link.queue.release();
    let abandoned = shared.fences.abandoned();
    assert_eq!(abandoned, [identity(1)], "a repeat still relies on its end");
    let refused = Fence::Refused("NOPERM".into());
    shared.fences.serves(link, &Ok(()), &abandoned, &[refused]);
    link.open(clock::now());
    assert_eq!(link.queue.take_commands(Backlog::default()).len(), 0);
    let error = link.queue.submit(relying(), |out: &mut Vec<u8>| out.len());
    assert!(error.is_err(), "the identity is loose");
    // Dialled before it was refused, so it has not been asked: it is now, ahead of what waits.
    link.queue.release();
    shared.fences.serves(link, &Ok(()), &[], &[]);
    link.open(clock::now());
    assert_eq!(link.queue.take_commands(Backlog::default()).len(), 1);
    shared.fences.fence_answered(Some(0), &identity(1), &done());
    assert!(shared.fences.abandoned().is_empty());
    let submitted = link.queue.submit(relying(), |out: &mut Vec<u8>| out.len());
    assert!(submitted.is_ok(), "nothing can come after it");
}
