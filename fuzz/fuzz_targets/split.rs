//! Any commands are given a place and divided without panic, and whatever is answered to their
//! parts is joined or an error: each part has one slot and is sent on, no command is lost, and one
//! that was answered is not sent again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use redis::{Pipeline, ServerError, Value};
use steadfast_core::certainty::Certainty;
use steadfast_core::command::place::{Place, place};
use steadfast_core::command::{arguments, key_names};
use steadfast_core::redis_rs::commands;
use steadfast_core::resp::Decoder;
use steadfast_core::scan::ScanPage;
use steadfast_core::slot::common_slot;
use steadfast_core::split::pipeline::{SplitPipeline, Terms};
use steadfast_core::split::{self, DivideMset, Failed, UnexpectedAnswer, transaction_slot};

#[derive(Clone)]
struct Lost;

impl From<UnexpectedAnswer> for Lost {
    fn from(_: UnexpectedAnswer) -> Self {
        Self
    }
}

impl From<ServerError> for Lost {
    fn from(_: ServerError) -> Self {
        Self
    }
}

fuzz_target!(|data: &[u8]| {
    // Commands by lines; behind an empty line the replies, one byte telling where each node is
    // lost.
    let (text, replies) = match data.windows(2).position(|two| two == b"\n\n") {
        Some(at) => (&data[..at], &data[at + 2..]),
        None => (data, &[][..]),
    };
    let mut pipeline = Pipeline::new();
    for line in text.split(|byte| *byte == b'\n') {
        let args = line.split(|byte| *byte == b' ');
        let found = place(args.clone());
        let one_slot = common_slot(key_names(args.clone())).is_ok();
        assert!(one_slot || matches!(found, Place::Slots(..) | Place::Refused(_)));
        let cmd = pipeline.add_command(redis::Cmd::new());
        args.for_each(|arg| {
            cmd.arg(arg);
        });
    }
    let _ = transaction_slot(&pipeline);
    for cmd in commands(&pipeline) {
        let Ok(Some(split)) = split::command(cmd, DivideMset::Yes) else {
            continue;
        };
        let keys: usize = split.parts().map(|part| part.keys().len()).sum();
        assert_eq!(keys, key_names(arguments(cmd)).count());
    }
    let mut answers = replies_of(replies).into_iter();
    let Ok(mut split) = SplitPipeline::<Lost>::new(&pipeline, DivideMset::Yes) else {
        return;
    };
    let terms = Terms {
        follow: true,
        retry: true,
        effect: None,
    };
    let mut answered = Vec::new();
    for _ in 0..8 {
        for part in split.to_send(|target| target.slot.map(|slot| slot.number() % 3)) {
            assert!(part.units().iter().all(|unit| !answered.contains(unit)));
            let some: Vec<Value> = answers.by_ref().take(part.units().len()).collect();
            let fine = |value: &Value| !matches!(value, Value::ServerError(_));
            let fine = part.units().iter().zip(&some).filter(|(_, value)| fine(value));
            answered.extend(fine.map(|(unit, _)| *unit));
            let certainty = match data.len() % 3 {
                0 => Certainty::NotSent,
                1 => Certainty::Rejected,
                _ => Certainty::Unknown,
            };
            let error = Lost;
            split.record(part.units(), some, Some(Failed { error, certainty }));
        }
        if split.again(terms, |_| true).is_nothing() {
            break;
        }
    }
    let count = match split.finish() {
        Ok(values) => values.len(),
        Err(failed) => failed.outcomes.len(),
    };
    assert_eq!(count, pipeline.len());
});

fn replies_of(mut bytes: &[u8]) -> Vec<Value> {
    let mut replies = Vec::new();
    let mut decoder = Decoder::default();
    while let Ok(decoded) = decoder.decode(bytes) {
        bytes = &bytes[decoded.consumed..];
        let Some(value) = decoded.value else { break };
        let _ = ScanPage::read(value.clone());
        replies.push(value);
    }
    replies
}
