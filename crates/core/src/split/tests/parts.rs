//! Parts, and their answers joined.

use std::collections::BTreeSet;

use super::*;
use crate::command::place::Joining;
use crate::slot::KeySet;

#[test]
fn t8_a_part_that_goes_its_own_way_comes_back_to_the_places_of_its_commands() {
    let mut pipeline = pipe();
    pipeline.set("k", 1).set("other", 1).mget(&["k", "other"]);
    let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    // What was not sent waits as before.
    let parts = split.to_send(|_| "old");
    split.take_back(parts[0].units());
    assert_eq!(split.waiting_slots().count(), 4);
    let keys: Vec<_> = split.waiting().map(|target| target.keys.clone()).collect();
    let (k, other) = (KeySet::of([&b"k"[..]]), KeySet::of([&b"other"[..]]));
    assert_eq!(keys[..2], [k, other]);

    let mut away = split
        .divide([slot("other")])
        .remove(&slot("other"))
        .unwrap();
    assert_eq!(split.waiting_slots().count(), 2);
    for (part, node) in [(&mut away, "new"), (&mut split, "old")] {
        let sent = part.to_send(|_| node);
        assert!(sent.len() == 1 && !sent[0].is_whole);
        let units = sent[0].units().to_vec();
        let answers = units
            .iter()
            .map(|unit| Value::Array(vec![Value::Int(*unit as i64)]));
        part.record(&units, answers.collect(), None);
        assert!(
            part.again(ALL, |_| true).is_nothing(),
            "nothing of the other"
        );
    }
    let mut whole = split.emptied();
    whole.join([away, split]);
    let answers = whole.finish().expect("all are answered");
    let list = |numbers: &[i64]| Value::Array(numbers.iter().copied().map(Value::Int).collect());
    assert_eq!(answers[..2], [list(&[0]), list(&[1])]);
    let Value::Array(both) = &answers[2] else {
        panic!("a list is asked for");
    };
    assert_eq!(both.len(), 2);
}

#[test]
fn t8_a_part_is_as_large_as_its_own_commands_however_many_the_pipeline_has() {
    const SLOTS: usize = 100;
    let mut pipeline = pipe();
    for number in 0..10 * SLOTS {
        pipeline.incr(format!("k{}", number % SLOTS), 1);
    }
    let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let slots: BTreeSet<Slot> = split.slots().collect();
    let mut parts = split.divide(slots.iter().copied());
    assert_eq!(parts.len(), slots.len());
    for (of, part) in &mut parts {
        let units = part
            .to_send(|target| target.slot)
            .remove(0)
            .units()
            .to_vec();
        assert!(units.len() < 100, "{} commands of one slot", units.len());
        assert!(units.iter().all(|unit| part.slot_of(*unit) == Some(*of)));
        assert_eq!(part.slots().count(), units.len(), "it has no others");
        let numbers = units.iter().map(|unit| Value::Int(*unit as i64));
        part.record(&units, numbers.collect(), None);
        assert!(part.has_run());
    }
    assert_eq!(split.slots().count(), 0, "all have left");
    split.join(parts.into_values());
    let numbers = (0..10 * SLOTS as i64).map(Value::Int);
    assert_eq!(
        split.finish().expect("answered"),
        numbers.collect::<Vec<_>>()
    );
}

#[test]
fn t8_what_leaves_with_a_part_keeps_what_is_known_of_its_slot() {
    let mut pipeline = pipe();
    pipeline.set("k", 1).set("k", 2).set("k", 3);
    let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let parts = split.to_send(|_| ());
    let again = server_error("TRYAGAIN Multiple keys");
    // The first has run, and the last: the one between may not be sent again.
    split.record(
        parts[0].units(),
        vec![Value::Okay, again, Value::Okay],
        None,
    );
    assert!(split.again(ALL, |_| true).is_nothing());
    let mut part = split.divide([slot("k")]).remove(&slot("k")).unwrap();
    assert!(
        part.again(ALL, |_| true).is_nothing(),
        "it came before one that has run"
    );
    let failed = split.finish().expect_err("a part of it was not given back");
    assert_eq!(failed.certainty, Certainty::Unknown);
}

#[test]
fn t11_a_pipeline_of_which_a_part_has_written_is_never_called_not_sent() {
    let refused = server_error("WRONGTYPE of another kind");
    for (other, answer, certainty) in [
        ("SET a 1", Value::Okay, Certainty::Unknown),
        ("SET a 1", refused, Certainty::NotSent),
        ("GET a", Value::Nil, Certainty::NotSent),
    ] {
        for commands in [[other, "GET b"], ["GET b", other]] {
            let mut pipeline = pipe();
            for text in commands {
                pipeline.add_command(words(text));
            }
            let mut split =
                SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
            for part in split.to_send(|target| target.slot) {
                let (answers, failed) = match part.units() {
                    [unit] if commands[*unit] == other => (vec![answer.clone()], None),
                    _ => (
                        Vec::new(),
                        Some(Failed {
                            error: Fault::Lost,
                            certainty: Certainty::NotSent,
                        }),
                    ),
                };
                split.record(part.units(), answers, failed);
            }
            let failed = split.finish().expect_err("one was not sent");
            assert_eq!(failed.certainty, certainty, "{commands:?} {answer:?}");
        }
    }
}

#[test]
fn t11_a_part_is_told_as_a_command_of_its_own_would_be() {
    let mut pipeline = pipe();
    pipeline.add_command(words("mget a b"));
    pipeline.add_command(words("incr a"));
    let split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let told: Vec<_> = split.portions(&[0, 1, 2]).collect();
    // Parts are in the order of their slots.
    for (portion, text) in told.iter().zip(["MGET b", "MGET a", "incr a"]) {
        let (whole, mut sent) = (words(text), Vec::new());
        portion.encode(&mut sent);
        assert_eq!(sent, whole.get_packed_command(), "{text}");
        assert!(portion.most_bytes() >= sent.len(), "{text}");
        assert_eq!(portion.to_cmd().get_packed_command(), sent);
        let arguments: Vec<_> = text.split(' ').map(str::as_bytes).collect();
        assert_eq!(portion.arguments(), arguments);
        assert_eq!(portion.name(), arguments[0]);
        let class = crate::command::classify(arguments.into_iter());
        assert_eq!(portion.classify(), class);
    }
    assert_eq!(told.len(), 3);
}

#[test]
fn t10_scripts_and_functions_alone_are_said_to_write_their_errors_themselves() {
    let mut pipeline = pipe();
    for text in ["GET k", "EVAL s 1 k", "FCALL f 1 k", "NEW k"] {
        pipeline.add_command(words(text));
    }
    let split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let said: Vec<_> = (0..5).map(|unit| split.is_script(unit)).collect();
    assert_eq!(said, [false, true, true, false, false]);
}

#[test]
fn t10_a_transaction_has_one_slot_or_is_refused_with_its_slots() {
    let of = |commands: &str| {
        let mut pipeline = pipe();
        pipeline.atomic();
        commands.split("; ").for_each(|command| {
            pipeline.add_command(words(command));
        });
        transaction_slot(&pipeline)
    };
    assert_eq!(of("SET {a}1 x; MGET {a}2 {a}3; PING"), Ok(Some(slot("a"))));
    assert_eq!(of("PING"), Ok(None));
    let refused = of("SET a x; MGET b a").expect_err("two slots");
    let message = refused.to_string();
    for named in ["MULTI", "3300", "15495", "braces"] {
        assert!(message.contains(named), "{message}");
    }
    assert!(matches!(
        of("DBSIZE"),
        Err(Indivisible::Everywhere { command: "DBSIZE" })
    ));
    let refused = of("SCAN 0").expect_err("no place").to_string();
    assert!(
        refused.contains("a cursor is valid for one server only"),
        "{refused}"
    );
}

#[test]
fn t11_what_cannot_be_divided_is_refused_with_its_slots() {
    for text in [
        "RENAME a b",
        "MSETNX a 1 b 2",
        "EVAL s 2 a b",
        "SINTER a b",
        "MSET a 1 b",
        "MSET a 1 b 2",
    ] {
        let refused = command(&words(text), DivideMset::No)
            .expect_err(text)
            .to_string();
        let name = text.split(' ').next().expect("a name");
        assert!(
            refused.contains(name) && refused.contains("3300, 15495"),
            "{refused}"
        );
        let mut pipeline = pipe();
        pipeline.add_command(words(text));
        assert!(
            SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).is_err(),
            "{text}"
        );
    }
    // A pair without its value is not divided even where others would be.
    let refused = command(&words("MSET a 1 b"), DivideMset::Yes).expect_err("half a pair");
    let refused = refused.to_string();
    assert!(
        refused.contains("MSET") && refused.contains("3300, 15495"),
        "{refused}"
    );
    // Many are cut off, and that is said.
    for (count, cut_off) in [(8, false), (9, true)] {
        let keys: Vec<_> = (0..count).map(|n| format!("{{k{n}}}")).collect();
        let refused = command(
            &words(&format!("SINTER {}", keys.join(" "))),
            DivideMset::No,
        )
        .expect_err("several slots")
        .to_string();
        assert_eq!(refused.contains(", …"), cut_off, "{refused}");
    }
    assert!(
        command(&words("MGET a{x} b{x}"), DivideMset::No)
            .expect("one slot")
            .is_none()
    );
    assert!(
        command(&words("PING"), DivideMset::No)
            .expect("none")
            .is_none()
    );
}

#[test]
fn t11_an_answer_that_does_not_fit_its_part_is_unknown_and_never_shifts_others() {
    let join = |text: &str, answers| {
        let cmd = words(text);
        let split = command(&cmd, DivideMset::Yes).expect("divided");
        split.expect("two slots").join::<Fault>(answers)
    };
    let list = |n: usize| Value::Array(vec![Value::Nil; n]);
    for (text, good, bad) in [
        ("MGET a b", list(1), list(2)),
        ("MGET a b", list(1), Value::Int(1)),
        ("DEL a b", Value::Int(1), Value::Okay),
        ("MSET a 1 b 2", Value::Okay, Value::Int(1)),
    ] {
        let failed = join(text, [Ok(good), Ok(bad)]).expect_err(text);
        let Failed { error, certainty } = Failed {
            error: failed.error,
            certainty: failed.certainty,
        };
        assert_eq!(
            (error, certainty),
            (Fault::Unexpected, Certainty::Unknown),
            "{text}"
        );
    }
}

#[test]
fn t12_joined_answers_are_whole_or_an_error() {
    let join = |joining, answers: Vec<Value>| {
        joined("X", joining, answers.into_iter().map(Ok::<_, Fault>))
    };
    let list = |numbers: &[i64]| Value::Array(numbers.iter().map(|n| Value::Int(*n)).collect());
    let text = |text: &str| Value::SimpleString(text.to_owned());
    for (joining, answers, whole) in [
        (
            Joining::Sum,
            vec![Value::Int(1), Value::Int(2)],
            Value::Int(3),
        ),
        (
            Joining::Concatenation,
            vec![list(&[1]), list(&[]), list(&[2, 3])],
            list(&[1, 2, 3]),
        ),
        (
            Joining::AllSucceed,
            vec![text("sha"), text("sha")],
            text("sha"),
        ),
        (
            Joining::FirstPresent,
            vec![Value::Nil, text("k")],
            text("k"),
        ),
        (
            Joining::FirstPresent,
            vec![Value::Nil, Value::Nil],
            Value::Nil,
        ),
        (
            Joining::And,
            vec![list(&[1, 1, 0]), list(&[1, 0, 0])],
            list(&[1, 0, 0]),
        ),
        (
            Joining::OneSucceeds,
            vec![server_error("NOTBUSY no"), Value::Okay],
            Value::Okay,
        ),
    ] {
        assert_eq!(join(joining, answers), Ok(whole), "{joining:?}");
    }
    for (joining, answers) in [
        (Joining::Sum, vec![Value::Int(1), text("2")]),
        (Joining::Concatenation, vec![list(&[1]), Value::Nil]),
        (Joining::And, vec![list(&[1]), list(&[1, 1])]),
        (Joining::And, vec![list(&[1]), list(&[2])]),
        (Joining::AllSucceed, vec![]),
    ] {
        assert_eq!(
            join(joining, answers),
            Err(Fault::Unexpected),
            "{joining:?}"
        );
    }
    let refused = || server_error("NOSCRIPT no");
    for joining in [
        Joining::Sum,
        Joining::Concatenation,
        Joining::AllSucceed,
        Joining::And,
    ] {
        let answers = vec![Value::Int(1), refused()];
        assert_eq!(join(joining, answers), Ok(refused()), "{joining:?}");
        let lost = [Ok(Value::Okay), Err(Fault::Lost), Ok(refused())];
        assert_eq!(joined("X", joining, lost), Err(Fault::Lost), "{joining:?}");
    }
    assert_eq!(
        join(Joining::OneSucceeds, vec![refused(), refused()]),
        Ok(refused())
    );
    let one = joined(
        "X",
        Joining::OneSucceeds,
        [Err(Fault::Lost), Ok(Value::Okay)],
    );
    assert_eq!(one, Ok(Value::Okay));
}

#[test]
fn errors_and_debug_output_show_no_keys() {
    let mget = words("MGET secret1 secret2");
    let split = command(&mget, DivideMset::No)
        .expect("divided")
        .expect("two slots");
    let lost = || Failed {
        error: UnexpectedAnswer {
            command: "MGET",
            wanted: "x",
        },
        certainty: Certainty::NotSent,
    };
    let failed = split
        .join([Ok(Value::Array(vec![Value::Nil])), Err(lost())])
        .expect_err("lost");
    let mut pipeline = pipe();
    pipeline.add_command(mget.clone());
    let mut parts = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let shown = format!(
        "{split:?} {failed} {failed:?} {parts:?} {:?}",
        parts.to_send(|_| ())
    );
    assert!(
        !shown.contains("secret") && !shown.contains("115, 101, 99"),
        "{shown}"
    );
    assert!(
        failed
            .to_string()
            .ends_with("(of 2 keys, 1 done, 1 not sent)"),
        "{failed}"
    );
}
