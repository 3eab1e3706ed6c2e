//! The command table against the `COMMAND` of a real server, and its judgements against what the
//! server does.

use std::collections::HashSet;

use redis::Value;
use steadfast_core::command::{BlockFor, Effect, Shared, classify, keys};

use crate::redis::{Connection, Server};
use crate::samples::{LOOK, RUN, Sample};

/// What the server says of one command or subcommand.
struct Known {
    /// As the table spells it: `CLIENT KILL`.
    name: String,
    flags: HashSet<String>,
    first_key: i64,
}

pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        other => panic!("not a text: {other:?}"),
    }
}

pub(crate) fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) => items,
        other => panic!("not an array: {other:?}"),
    }
}

fn known_commands(connection: &mut Connection) -> Vec<Known> {
    fn add(entry: &Value, all: &mut Vec<Known>) {
        let entry = items(entry);
        let Value::Int(first_key) = entry[3] else {
            panic!("no first key")
        };
        all.push(Known {
            name: text(&entry[0]).to_uppercase().replace('|', " "),
            flags: items(&entry[2]).iter().map(text).collect(),
            first_key,
        });
        items(&entry[9]).iter().for_each(|sub| add(sub, all));
    }
    let mut all = Vec::new();
    items(&connection.words("COMMAND"))
        .iter()
        .for_each(|entry| add(entry, &mut all));
    assert!(all.len() > 350);
    all
}

pub(crate) fn split(command: &str) -> Vec<Vec<u8>> {
    command
        .split(' ')
        .map(|word| {
            if word == "''" {
                Vec::new()
            } else {
                word.as_bytes().to_vec()
            }
        })
        .collect()
}

fn class(command: &str) -> steadfast_core::command::Class {
    let args = split(command);
    classify(args.iter().map(Vec::as_slice))
}

fn samples_of(name: &str) -> impl Iterator<Item = &'static Sample> {
    let name = format!("{name} ");
    RUN.iter()
        .chain(LOOK)
        .filter(move |sample| format!("{} ", sample.command).starts_with(&name))
}

#[test]
fn c4_no_command_or_subcommand_of_the_server_is_missing() {
    let server = Server::start();
    for known in known_commands(&mut server.connect()) {
        assert_eq!(class(&known.name).name, known.name);
        assert_eq!(class(&known.name.to_lowercase()).name, known.name);
    }
}

#[test]
fn c4_no_command_that_the_server_says_writes_is_taken_for_a_read() {
    // Those that do read in the form given.
    let reads = [
        "SORT",
        "GETEX",
        "BITFIELD",
        "GEORADIUS",
        "GEORADIUSBYMEMBER",
    ];
    let server = Server::start();
    for known in known_commands(&mut server.connect()) {
        if known.flags.contains("write") {
            let samples: Vec<_> = samples_of(&known.name).collect();
            assert!(
                known.name == "PFDEBUG" || samples.iter().any(|s| s.effect != Effect::Read),
                "{}",
                known.name
            );
            if !reads.contains(&known.name.as_str()) {
                assert_ne!(class(&known.name).effect, Effect::Read, "{}", known.name);
                assert!(
                    samples.iter().all(|sample| sample.effect != Effect::Read),
                    "{}",
                    known.name
                );
            }
        } else if known.flags.contains("readonly") {
            assert_eq!(class(&known.name).effect, Effect::Read, "{}", known.name);
        }
    }
}

#[test]
fn c4_samples_are_judged_as_they_say() {
    for sample in RUN.iter().chain(LOOK) {
        assert_eq!(
            class(sample.command).effect,
            sample.effect,
            "{}",
            sample.command
        );
    }
}

/// The law behind the names: each sample is run twice on a real server, and state and answers
/// compared.
#[test]
fn c4_the_effects_are_those_that_a_repeat_has_on_a_real_server() {
    let server = Server::start();
    let mut connection = server.connect();
    for sample in RUN {
        connection.words("FLUSHALL");
        for before in sample
            .before
            .split("; ")
            .filter(|before| !before.is_empty())
        {
            let answer = connection.words(before);
            assert!(
                !matches!(answer, Value::ServerError(_)),
                "{before}: {answer:?}"
            );
        }
        let dump = connection.words("DUMP from");
        let mut args = split(sample.command);
        for arg in &mut args {
            if let (b"<dump>", Value::BulkString(dump)) = (arg.as_slice(), &dump) {
                arg.clone_from(dump);
            }
        }
        let states_and_answers: Vec<_> = (0..2)
            .map(|_| {
                let answer = connection.send(&args);
                (state(&mut connection, sample), answer)
            })
            .collect();
        let [(state_1, answer_1), (state_2, answer_2)] = &states_and_answers[..] else {
            unreachable!()
        };
        let what = format!("{}: {states_and_answers:?}", sample.command);
        assert!(!matches!(answer_1, Value::ServerError(_)), "{what}");
        match sample.effect {
            Effect::Read | Effect::LastWins => {
                assert_eq!(state_1, state_2, "{what}");
                // The idle time may tick, and a random member be another one, between two reads.
                assert!(
                    sample.effect == Effect::Read || answer_1 == answer_2,
                    "{what}"
                );
            }
            Effect::Conditional => {
                assert_eq!(state_1, state_2, "{what}");
                assert_ne!(answer_1, answer_2, "{what}");
            }
            _ => assert_ne!((state_1, answer_1), (state_2, answer_2), "{what}"),
        }
        if sample.effect == Effect::Read {
            connection.words("FLUSHALL");
            for before in sample
                .before
                .split("; ")
                .filter(|before| !before.is_empty())
            {
                connection.words(before);
            }
            assert_eq!(&state(&mut connection, sample), state_1, "{what}");
        }
    }
}

/// "The last one wins" concerns the keys that a command names. What others wrote elsewhere
/// meanwhile was acknowledged, and stays.
#[test]
fn c4_a_repeat_of_what_is_called_last_wins_leaves_alone_what_others_wrote_to_other_keys() {
    let server = Server::start();
    let (mut ours, mut theirs) = (server.connect(), server.connect());
    let library = "#!lua name=theirs\nredis.register_function('theirs', function() return 1 end)";
    let load: Vec<_> = ["FUNCTION", "LOAD", library]
        .map(|word| word.as_bytes().to_vec())
        .into();
    let flushes = ["FLUSHALL", "FLUSHDB", "FUNCTION FLUSH"].map(|command| Sample {
        before: "",
        command,
        effect: class(command).effect,
    });
    let samples = RUN.iter().chain(&flushes);
    for sample in samples.filter(|sample| sample.effect == Effect::LastWins) {
        ours.words("FLUSHALL");
        ours.words("FUNCTION FLUSH");
        sample
            .before
            .split("; ")
            .filter(|before| !before.is_empty())
            .for_each(|before| drop(ours.words(before)));
        ours.words(sample.command);
        theirs.words("SET theirs 1");
        theirs.send(&load);
        ours.words(sample.command);
        let kept = theirs.words("GET theirs");
        assert_eq!(kept, Value::BulkString(b"1".into()), "{}", sample.command);
        let kept = theirs.words("FCALL theirs 0");
        assert_eq!(kept, Value::Int(1), "{}", sample.command);
    }
}

/// Moved back by a repeat, a group is given what it was given before.
#[test]
fn c4_moving_a_group_is_not_repeated_because_that_would_deliver_again() {
    let server = Server::start();
    let mut connection = server.connect();
    for command in ["XGROUP SETID k g 0", "XGROUP SETID k g $"] {
        connection.words("FLUSHALL");
        for before in ["XADD k 1-1 f v", "XGROUP CREATE k g 0", command] {
            connection.words(before);
        }
        connection.words("XADD k 2-1 f v");
        let read = "XREADGROUP GROUP g c STREAMS k >";
        let delivered = connection.words(read);
        connection.words("XADD k 3-1 f v");
        let mut meanwhile = server.connect();
        meanwhile.words("XADD k 4-1 f v");
        connection.words(command);
        let again = connection.words(read);
        let next = "XRANGE k 3-1 +";
        let undisturbed = connection.words(next);
        assert!(!matches!(delivered, Value::ServerError(_)), "{delivered:?}");
        // Neither what was to come, nor only that.
        let entries = match &again {
            Value::Array(streams) => match items(&streams[0]) {
                [_, entries] => entries.clone(),
                other => panic!("{other:?}"),
            },
            _ => Value::Array(Vec::new()),
        };
        assert_ne!(entries, undisturbed, "{command}");
        let effect = class(command).effect;
        assert_eq!(effect, Effect::Accumulating, "{command}");
    }
    assert_eq!(class("XSETID k 9-9").effect, Effect::Accumulating);
}

/// The server's digest of all data, and for a stream, of which that omits the groups, what is
/// pending.
fn state(connection: &mut Connection, sample: &Sample) -> (Value, Value) {
    let pending = if sample.command.starts_with('X') {
        connection.words("XPENDING k g IDLE 0 - + 9")
    } else {
        Value::Nil
    };
    (
        connection.words("DEBUG DIGEST"),
        without_idle_times(pending),
    )
}

/// XPENDING answers id, consumer, idle time, deliveries.
fn without_idle_times(pending: Value) -> Value {
    match pending {
        Value::Array(entries) => Value::Array(
            entries
                .into_iter()
                .map(|entry| match entry {
                    Value::Array(mut fields) => {
                        fields.remove(2);
                        Value::Array(fields)
                    }
                    other => other,
                })
                .collect(),
        ),
        other => other,
    }
}

#[test]
fn c13_every_command_that_the_server_calls_blocking_is_known_to_block() {
    let server = Server::start();
    for known in known_commands(&mut server.connect()) {
        let blocks = |sample: &Sample| class(sample.command).blocking.is_some();
        if known.flags.contains("blocking") {
            let with_block = format!("{} BLOCK 5 STREAMS k 0", known.name);
            assert!(
                samples_of(&known.name).any(blocks) || class(&with_block).blocking.is_some(),
                "{}",
                known.name
            );
        } else if known.name != "WAIT" {
            assert!(!samples_of(&known.name).any(blocks), "{}", known.name);
        }
    }
    assert_eq!(class("WAIT 1 0").blocking, Some(BlockFor::Forever));
}

#[test]
fn c13_keys_are_where_the_server_finds_them() {
    let server = Server::start();
    let mut connection = server.connect();
    let mut with_keys = HashSet::new();
    // The server does not ask for the keys of a lone name.
    for sample in RUN
        .iter()
        .chain(LOOK)
        .filter(|sample| sample.command.contains(' '))
    {
        let args = split(sample.command);
        let found = keys(args.iter().map(Vec::as_slice));
        let names: Vec<_> = found
            .iter()
            .map(|&index| Value::BulkString(args[index].clone()))
            .collect();
        assert_eq!(
            class(sample.command).first_key,
            found.first().copied(),
            "{}",
            sample.command
        );
        match connection.send(&[split("COMMAND GETKEYS"), args.clone()].concat()) {
            Value::ServerError(error) => {
                let no_keys = error
                    .details()
                    .is_some_and(|text| text.contains("no key arguments"));
                // A shard channel is served where a key of its name would be, though it is none.
                let none = names.is_empty() || sample.command.starts_with("SPUBLISH ");
                assert!(no_keys && none, "{}: {error:?}", sample.command);
            }
            theirs => {
                assert_eq!(Value::Array(names), theirs, "{}", sample.command);
                with_keys.insert(class(sample.command).name.to_owned());
            }
        }
    }
    // Whatever the server knows to have a key has been tried.
    for known in known_commands(&mut connection) {
        let stateful = matches!(class(&known.name).shared, Shared::No(_));
        let keyed = known.first_key > 0 || known.flags.contains("movablekeys");
        if keyed && !stateful && known.name != "SPUBLISH" {
            assert!(
                with_keys.contains(&known.name),
                "no sample of {}",
                known.name
            );
        }
    }
}

/// The server bars scripts from what depends on the state of a connection. All of that is refused
/// on the shared connection, but for what is barred for other reasons: looking, administering, and
/// blocking commands, which get a connection of their own.
#[test]
fn c13_what_changes_the_state_of_a_connection_is_refused_on_the_shared_one() {
    let harmless = [
        "ACL CAT",
        "ACL GENPASS",
        "ACL WHOAMI",
        "CLIENT GETNAME",
        "CLIENT GETREDIR",
        "CLIENT ID",
        "CLIENT INFO",
        "CLIENT TRACKINGINFO",
        "EVAL",
        "EVALSHA",
        "EVALSHA_RO",
        "EVAL_RO",
        "FCALL",
        "FCALL_RO",
        "FUNCTION DELETE",
        "FUNCTION DUMP",
        "FUNCTION FLUSH",
        "FUNCTION KILL",
        "FUNCTION LIST",
        "FUNCTION LOAD",
        "FUNCTION RESTORE",
        "FUNCTION STATS",
        "ROLE",
        "SCRIPT EXISTS",
        "SCRIPT FLUSH",
        "SCRIPT KILL",
        "SCRIPT LOAD",
    ];
    let administers_but_takes_over_the_connection =
        ["MONITOR", "SYNC", "PSYNC", "REPLCONF", "CLIENT NO-EVICT"];
    let server = Server::start();
    for known in known_commands(&mut server.connect()) {
        let name = known.name.as_str();
        let excused = harmless.contains(&name)
            || known.flags.contains("blocking")
            || known.flags.contains("admin")
                && !administers_but_takes_over_the_connection.contains(&name);
        if known.flags.contains("noscript") && !excused {
            assert!(matches!(class(name).shared, Shared::No(_)), "{name}");
        }
    }
    for name in [
        "SELECT 1",
        "READONLY",
        "READWRITE",
        "ASKING",
        "QUIT",
        "RESET",
        "HELLO 3",
        "AUTH x",
        "MONITOR",
    ] {
        assert!(matches!(class(name).shared, Shared::No(_)), "{name}");
    }
    for name in [
        "GET k",
        "BLPOP k 0",
        "PUBLISH c m",
        "CLIENT LIST",
        "SCAN 0",
        "EVAL x 0",
    ] {
        assert_eq!(class(name).shared, Shared::Yes, "{name}");
    }
}
