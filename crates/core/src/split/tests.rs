//! Parts against the whole: a model of one server, and the same divided among many that redirect,
//! refuse and lose what they are sent.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use redis::{Cmd, ServerError, Value, pipe};

use super::pipeline::{CommandOutcome, PipelineFailed, SplitPipeline, Target, Terms};
use super::*;
use crate::command::Effect;
use crate::command::place::Joining;
use crate::redirect::Routing;
use crate::redis_rs::CommandRef;
use crate::slot::KeySet;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    Lost,
    Unexpected,
    Refused(String),
}

impl From<UnexpectedAnswer> for Fault {
    fn from(_: UnexpectedAnswer) -> Self {
        Self::Unexpected
    }
}

impl From<ServerError> for Fault {
    fn from(error: ServerError) -> Self {
        Self::Refused(error.code().to_owned())
    }
}

fn words(text: &str) -> Cmd {
    let mut cmd = Cmd::new();
    text.split(' ').for_each(|word| {
        cmd.arg(word);
    });
    cmd
}

fn slot(key: &str) -> Slot {
    Slot::of_key(key.as_bytes())
}

fn server_error(line: &str) -> Value {
    let mut decoder = crate::resp::Decoder::default();
    let decoded = decoder.decode(format!("-{line}\r\n").as_bytes());
    decoded.expect("it is an error").value.expect("it is whole")
}

/// A server, as far as these tests go.
#[derive(Clone, Debug, Default, PartialEq)]
struct Data(BTreeMap<Vec<u8>, Vec<u8>>);

impl Data {
    fn run(&mut self, cmd: CommandRef<'_>) -> Value {
        let args: Vec<Vec<u8>> = cmd.arguments().map(<[u8]>::to_vec).collect();
        let keys = &args[1..];
        let count = |n: usize| Value::Int(i64::try_from(n).expect("few"));
        match &*args[0] {
            b"MGET" => Value::Array(keys.iter().map(|key| self.get(key)).collect()),
            b"GET" => self.get(&keys[0]),
            b"EXISTS" | b"TOUCH" => {
                count(keys.iter().filter(|key| self.0.contains_key(*key)).count())
            }
            b"DEL" | b"UNLINK" => count(
                keys.iter()
                    .filter(|key| self.0.remove(*key).is_some())
                    .count(),
            ),
            b"MSET" | b"SET" => {
                for pair in keys.chunks_exact(2) {
                    self.0.insert(pair[0].clone(), pair[1].clone());
                }
                Value::Okay
            }
            b"APPEND" => {
                let value = self.0.entry(keys[0].clone()).or_default();
                value.extend_from_slice(&keys[1]);
                count(value.len())
            }
            other => panic!("{other:?}"),
        }
    }

    fn get(&self, key: &[u8]) -> Value {
        let value = self.0.get(key);
        value.map_or(Value::Nil, |value| Value::BulkString(value.clone()))
    }
}

/// A few keys, of fewer slots.
fn key() -> impl Strategy<Value = String> {
    prop_oneof![
        (0..6_u8).prop_map(|n| format!("k{n}")),
        (0..2_u8, 0..3_u8).prop_map(|(tag, n)| format!("{{t{tag}}}:{n}")),
    ]
}

fn of_many_keys() -> impl Strategy<Value = Cmd> {
    let names = prop::sample::select(vec!["MGET", "EXISTS", "TOUCH", "DEL", "UNLINK", "MSET"]);
    (names, prop::collection::vec(key(), 1..9)).prop_map(|(name, keys)| {
        let mut cmd = redis::cmd(name);
        for (at, key) in keys.iter().enumerate() {
            cmd.arg(key);
            if name == "MSET" {
                cmd.arg(at);
            }
        }
        cmd
    })
}

fn some_command() -> impl Strategy<Value = Cmd> {
    prop_oneof![
        key().prop_map(|key| words(&format!("GET {key}"))),
        (key(), 0..9_u8).prop_map(|(key, n)| words(&format!("SET {key} {n}"))),
        (key(), 0..9_u8).prop_map(|(key, n)| words(&format!("APPEND {key} {n}"))),
        of_many_keys(),
    ]
}

proptest! {
    #[test]
    fn t11_parts_do_and_answer_what_the_whole_would(
        before in prop::collection::vec(key(), 0..6),
        cmd in of_many_keys(),
    ) {
        let mut whole = Data::default();
        for key in &before {
            whole.run((&words(&format!("SET {key} before"))).into());
        }
        let mut parts = whole.clone();
        let expected = whole.run((&cmd).into());
        if let Some(split) = command(&cmd, DivideMset::Yes).expect("it can be divided") {
            let results: Vec<_> = split.parts().map(|part| {
                let cmd = part.cmd();
                let mut encoded = [Vec::new(), Vec::new()];
                Portion::Part(part).encode(&mut encoded[0]);
                crate::resp::encode::redis_cmd(&cmd, &mut encoded[1]);
                assert_eq!(encoded[0], encoded[1]);
                assert!(encoded[0].len() <= Portion::Part(part).most_bytes());
                let keys = key_names(arguments(&cmd));
                assert!(keys.map(Slot::of_key).all(|slot| slot == part.slot()));
                Ok::<_, Failed<Fault>>(parts.run((&cmd).into()))
            }).collect();
            prop_assert!(results.len() > 1);
            prop_assert_eq!(split.join(results), Ok(expected));
            prop_assert_eq!(parts, whole);
        } else {
            prop_assert!(common_slot_of(&cmd));
        }
    }

    #[test]
    fn t11_a_call_of_which_parts_failed_lists_its_keys_and_is_as_certain_as_the_worst(
        cmd in of_many_keys(),
        fates in prop::collection::vec(0..5_u8, 9),
    ) {
        let Some(split) = command(&cmd, DivideMset::Yes).expect("it can be divided") else {
            return Ok(());
        };
        let certainty = |fate: u8| [Certainty::NotSent, Certainty::Rejected, Certainty::Unknown]
            .get(usize::from(fate)).copied();
        let mut data = Data::default();
        let results = split.parts().zip(&fates).map(|(part, fate)| match certainty(*fate) {
            None => Ok(data.run((&part.cmd()).into())),
            Some(certainty) => Err(Failed { error: Fault::Lost, certainty }),
        });
        let joined = split.join(results.collect::<Vec<_>>());
        let of_parts: Vec<_> = fates[..split.parts().len()].iter().map(|fate| certainty(*fate)).collect();
        let Some(worst) = of_parts.iter().flatten().max() else {
            prop_assert!(joined.is_ok());
            return Ok(());
        };
        let failed = joined.expect_err("a part has failed");
        for (part, certainty) in split.parts().zip(&of_parts) {
            let fate = certainty.map_or(KeyFate::Done, KeyFate::Failed);
            for key in part.keys() {
                prop_assert_eq!(failed.fates[*key], fate);
            }
        }
        let writes = !matches!(name(arguments(&cmd)), "MGET" | "EXISTS" | "TOUCH");
        let half = writes && of_parts.contains(&None);
        prop_assert_eq!(failed.certainty, if half { Certainty::Unknown } else { *worst });
    }

    #[test]
    fn t8_a_pipeline_through_redirects_and_losses_is_that_of_one_server(
        commands in prop::collection::vec(some_command(), 1..24),
        seed in any::<u64>(),
    ) {
        check_pipeline(&commands, seed, &|effect| effect <= Effect::LastWins)?;
        check_pipeline(&commands, seed, &|effect| effect == Effect::Read)?;
    }
}

fn common_slot_of(cmd: &Cmd) -> bool {
    crate::slot::common_slot(key_names(arguments(cmd))).is_ok()
}

/// The units that ran, in their order.
#[derive(Default)]
struct Log(Vec<usize>);

fn check_pipeline(
    commands: &[Cmd],
    seed: u64,
    may_repeat: &dyn Fn(Effect) -> bool,
) -> Result<(), TestCaseError> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut pipeline = pipe();
    commands.iter().for_each(|cmd| {
        pipeline.add_command(cmd.clone());
    });
    let mut one = Data::default();
    let expected: Vec<Value> = commands.iter().map(|cmd| one.run(cmd.into())).collect();

    let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::Yes).expect("divided");
    let (mut many, mut log) = (Data::default(), Log::default());
    let mut of_unit: HashMap<usize, Cmd> = HashMap::new();
    let mut answered: Vec<usize> = Vec::new();
    for _ in 0..12 {
        for part in split.to_send(|target| target.slot.map(|slot| slot.number() % 3)) {
            let portions = split.portions(part.units());
            let cmds: Vec<Cmd> = portions.map(Portion::to_cmd).collect();
            assert_eq!(cmds.len(), part.units().len());
            let lost_at = if rng.u8(..3) == 0 {
                rng.usize(..=cmds.len())
            } else {
                cmds.len()
            };
            let ran_until = rng.usize(lost_at..=cmds.len());
            let (mut answers, mut redirects) = (Vec::new(), rng.u8(..4) == 0);
            for (at, (number, cmd)) in part.units().iter().zip(&cmds).enumerate() {
                prop_assert!(!answered.contains(number), "{number} had been answered");
                of_unit.insert(*number, cmd.clone());
                redirects ^= rng.u8(..8) == 0;
                let answer = if redirects {
                    let key = key_names(arguments(cmd)).next().expect("a key");
                    server_error(&format!("MOVED {} h:1", Slot::of_key(key)))
                } else if at < ran_until {
                    log.0.push(*number);
                    many.run(cmd.into())
                } else {
                    continue;
                };
                if at < lost_at && answers.len() == at {
                    if !redirects {
                        answered.push(*number);
                    }
                    answers.push(answer);
                }
            }
            let certainty = if ran_until == 0 && rng.bool() {
                Certainty::NotSent
            } else {
                Certainty::Unknown
            };
            let lost = Failed {
                error: Fault::Lost,
                certainty,
            };
            let lost = (answers.len() < cmds.len()).then_some(lost);
            split.record(part.units(), answers, lost);
        }
        let terms = Terms {
            follow: true,
            retry: true,
            effect: None,
        };
        if split.again(terms, may_repeat).is_nothing() {
            break;
        }
    }
    check_log(&log, &of_unit, &answered, may_repeat)?;
    match split.finish() {
        Ok(answers)
            if !answers
                .iter()
                .any(|answer| matches!(answer, Value::ServerError(_))) =>
        {
            prop_assert_eq!(answers, expected);
            prop_assert_eq!(many, one);
        }
        Ok(answers) => prop_assert_eq!(answers.len(), commands.len()),
        Err(PipelineFailed {
            outcomes,
            certainty,
            ..
        }) => {
            prop_assert_eq!(outcomes.len(), commands.len());
            let failed = outcomes.iter().filter_map(|outcome| match outcome {
                CommandOutcome::Failed(certainty) => Some(*certainty),
                CommandOutcome::Answered(_) => None,
            });
            prop_assert!(Some(certainty) >= failed.max());
        }
    }
    Ok(())
}

/// Nothing ran twice that may not, and what came first has not the last word over what came later.
/// (A read whose answer nobody got has none. Of two that overwrite, both of unknown outcome, both
/// are repeated; should that fail between them, the second is told as unknown.)
fn check_log(
    log: &Log,
    of_unit: &HashMap<usize, Cmd>,
    answered: &[usize],
    may_repeat: &dyn Fn(Effect) -> bool,
) -> Result<(), TestCaseError> {
    let mut last: BTreeMap<usize, usize> = BTreeMap::new();
    for (when, number) in log.0.iter().enumerate() {
        let effect = crate::command::classify(arguments(&of_unit[number])).effect;
        let before = last.insert(*number, when);
        prop_assert!(
            before.is_none() || may_repeat(effect),
            "{} ran twice",
            number
        );
    }
    for (first, when) in &last {
        for (later, then) in last.range(first + 1..) {
            let (a, b) = (&of_unit[first], &of_unit[later]);
            let effect = |cmd| crate::command::classify(arguments(cmd)).effect;
            let both_overwrite = [effect(a), effect(b)] == [Effect::LastWins; 2];
            if !answered.contains(later) && (effect(b) == Effect::Read || both_overwrite) {
                continue;
            }
            let keys = |cmd| {
                key_names(arguments(cmd))
                    .map(<[u8]>::to_vec)
                    .collect::<Vec<_>>()
            };
            let shared = keys(a).iter().any(|key| keys(b).contains(key));
            if shared && (effect(a), effect(b)) != (Effect::Read, Effect::Read) {
                prop_assert!(when < then, "{} ran behind {}", first, later);
            }
        }
    }
    Ok(())
}

const ALL: Terms = Terms {
    follow: true,
    retry: true,
    effect: None,
};

fn reads_and_last_wins(effect: Effect) -> bool {
    effect <= Effect::LastWins
}

/// Sends a pipeline to one node, which gives these answers and then is lost, and tells which
/// commands are sent again.
fn again(commands: &str, answers: &[&str], terms: Terms) -> Vec<usize> {
    let mut pipeline = pipe();
    commands.split("; ").for_each(|command| {
        pipeline.add_command(words(command));
    });
    let mut split =
        SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("it can be divided");
    let parts = split.to_send(|_| ());
    assert_eq!(parts.len(), 1);
    assert!(parts[0].is_whole);
    let answers = answers.iter().map(|answer| match answer.strip_prefix('-') {
        Some(error) => server_error(error),
        None => Value::SimpleString((*answer).to_owned()),
    });
    let lost = Failed {
        error: Fault::Lost,
        certainty: Certainty::Unknown,
    };
    split.record(parts[0].units(), answers.collect(), Some(lost));
    split.again(terms, reads_and_last_wins);
    let parts = split.to_send(|_| ());
    let mut units: Vec<usize> = parts
        .iter()
        .flat_map(|part| part.units().to_vec())
        .collect();
    units.sort_unstable();
    units
}

#[test]
fn t8_only_what_was_rejected_not_sent_or_may_be_repeated_is_sent_again() {
    let k = slot("k");
    let moved = format!("-MOVED {k} h:1");
    let moved = moved.as_str();
    for (commands, answers, expected) in [
        // Answered: never.
        ("SET k 1; GET k", &["OK", "1"][..], &[][..]),
        ("INCR k; INCR k", &[moved, moved], &[0, 1]),
        // Lost: reads and last-wins writes, all of a slot or none.
        ("GET k; SET {k}2 1", &[], &[0, 1]),
        ("GET k; SET k 1", &[], &[]),
        ("SET k 1; GET k", &[], &[0, 1]),
        ("SET k 1; INCR k; GET k", &[], &[]),
        ("INCR k; GET other", &[], &[1]),
        ("PING; INCR k", &[], &[0]),
        // A later command of its key has run, or may have.
        ("SET k 1; SET k 2", &[moved, "OK"], &[]),
        ("GET k; SET k 2", &[moved, "OK"], &[]),
        ("GET k; GET k", &[moved, "1"], &[0]),
        ("SET k 1; SET {k}2 2", &[moved, "OK"], &[0]),
        ("SET k 1; INCR k", &[moved], &[]),
        // It would see what a later one may have written already.
        ("INCR k; SET k 1", &[moved], &[1]),
        ("GET k; SET k 1", &[moved], &[1]),
        // Refused for now; and for good.
        (
            "INCR k; INCR other",
            &["-LOADING", "-CLUSTERDOWN The cluster is down"],
            &[0, 1],
        ),
        ("INCR k; INCR k", &["-WRONGTYPE", "-OOM"], &[]),
        // A script's words are its own, unless they name its slot.
        ("EVAL s 1 k", &[moved], &[0]),
        ("EVAL s 1 k", &["-MOVED 1 h:1"], &[]),
        ("EVAL s 1 k", &["-LOADING"], &[]),
        // A module's command goes by any of its arguments.
        ("JSON.X a k", &[moved], &[0]),
        ("JSON.X a b", &[moved], &[]),
    ] {
        assert_eq!(
            again(commands, answers, ALL),
            expected,
            "{commands}: {answers:?}"
        );
    }
}

#[test]
fn t8_what_is_sent_again_is_what_policy_and_caller_allow() {
    let moved = format!("-MOVED {} h:1", slot("k"));
    let commands = "INCR k; GET {k}2";
    let with = |follow, retry, effect| Terms {
        follow,
        retry,
        effect,
    };
    let again = |terms| again(commands, &[&moved], terms);
    assert_eq!(again(ALL), [0, 1]);
    assert_eq!(again(with(true, false, None)), [0]);
    assert_eq!(again(with(false, true, None)), [1]);
    assert_eq!(again(with(false, false, None)), []);
    assert_eq!(again(with(true, true, Some(Effect::Accumulating))), [0]);
    // Who says that all may be repeated is believed, about reading before writing too.
    let said = with(true, true, Some(Effect::LastWins));
    assert_eq!(super::tests::again("GET k; INCR k", &[], said), [0, 1]);
}

#[test]
fn t6_each_command_that_was_answered_ask_is_marked_for_an_asking_of_its_own() {
    let mut pipeline = pipe();
    pipeline.set("k", 1).set("other", 2);
    let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let parts = split.to_send(|_| "one");
    let ask = server_error(&format!("ASK {} h:1", slot("k")));
    split.record(parts[0].units(), vec![ask, server_error("LOADING")], None);
    assert_eq!(
        split.again(ALL, |_| false),
        pipeline::Again {
            followed: 1,
            retried: 1,
            held: 0,
        }
    );
    let parts = split.to_send(|target| match target.redirect {
        Some(Routing::Ask(redirect)) => redirect.port,
        _ => 0,
    });
    let told: Vec<_> = parts
        .iter()
        .map(|part| (part.node, part.asking, part.is_whole))
        .collect();
    assert_eq!(told, [(1, true, false), (0, false, false)]);

    // One that has grown old before it could be followed is not.
    for part in &parts {
        split.take_back(part.units());
    }
    split.ask_anew(|of| of == Slot::of_key(b"other"));
    assert!(split.to_send(|_| "one").iter().any(|part| part.asking));
    split.take_back(&[0, 1]);
    split.ask_anew(|of| of == Slot::of_key(b"k"));
    let parts = split.to_send(|_| "one");
    assert!(parts.iter().all(|part| !part.asking), "{parts:?}");
}

#[test]
fn t9_of_one_slot_no_command_is_in_an_earlier_part_than_the_one_before_it() {
    let mut pipeline = pipe();
    pipeline.set("other", 0).set("{k}1", 1).set("{k}2", 2);
    let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let parts = split.to_send(|_| "old");
    // The migration ends between the answers to the second and the third.
    let moved = |key| server_error(&format!("MOVED {} h:1", slot(key)));
    let ask = server_error(&format!("ASK {} h:1", slot("k")));
    let answers = vec![moved("other"), ask, moved("k")];
    split.record(parts[0].units(), answers, None);
    split.again(ALL, |_| false);
    let parts = split.to_send(|_| "new");
    let told: Vec<_> = parts
        .iter()
        .map(|part| (part.asking, part.units()))
        .collect();
    assert_eq!(told, [(false, &[0][..]), (true, &[1]), (false, &[2])]);
}

#[test]
fn t9_what_is_behind_a_command_of_its_key_that_goes_elsewhere_or_waits_is_held_back() {
    let ask = format!("-ASK {} h:1", slot("k"));
    let again = "-TRYAGAIN Multiple keys request during rehashing of slot";
    for (commands, answers, sent, behind) in [
        (
            "MSET {k}1 1 {k}2 1; APPEND {k}1 2; GET {k}1; GET {k}3",
            [again, &ask, &ask, &ask],
            &[0, 3][..],
            &[1, 2][..],
        ),
        // Reads do not mind one another, and what is behind a write that waits does.
        (
            "MGET {k}1 {k}2; GET {k}1; APPEND {k}2 1; GET {k}2",
            [again, &ask, &ask, &ask],
            &[0, 1],
            &[2, 3],
        ),
        // What was refused for now, and what has to follow it to another node.
        (
            "SET {k}1 1; APPEND {k}1 2; GET {k}2; GET {k}3",
            ["-LOADING it is", &ask, "1", "2"],
            &[0],
            &[1],
        ),
    ] {
        let mut pipeline = pipe();
        commands.split("; ").for_each(|command| {
            pipeline.add_command(words(command));
        });
        let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
        let node = |target: Target<'_>| matches!(target.redirect, Some(Routing::Ask(_)));
        let parts = split.to_send(node);
        let answers = answers.iter().map(|answer| match answer.strip_prefix('-') {
            Some(error) => server_error(error),
            None => Value::SimpleString((*answer).to_owned()),
        });
        split.record(parts[0].units(), answers.collect(), None);
        assert!(!split.again(ALL, |_| false).is_nothing());
        let mut all = Vec::new();
        for expected in [sent, behind] {
            let parts = split.to_send(node);
            let units = parts.iter().flat_map(|part| part.units().to_vec());
            let units: Vec<_> = units.collect();
            assert_eq!(units, expected, "{commands}");
            for part in &parts {
                let done = part.units().iter().map(|_| Value::Okay);
                split.record(part.units(), done.collect(), None);
            }
            all.extend(units);
            let again = split.again(ALL, |_| false);
            assert_eq!(again.held > 0, expected == sent, "{commands}");
        }
        assert!(split.has_run() && split.finish().is_ok());
    }
}

#[test]
fn c2_what_was_refused_once_is_never_called_not_sent_and_what_never_went_is() {
    let mut pipeline = pipe();
    pipeline.set("k", 1).set("other", 1);
    let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let moved = server_error(&format!("MOVED {} h:1", slot("k")));
    let away = || Failed {
        error: Fault::Lost,
        certainty: Certainty::NotSent,
    };
    split.to_send(|target| target.slot);
    split.record(&[0], vec![moved], None);
    split.record(&[1], Vec::new(), Some(away()));
    let again = split.again(ALL, |_| false);
    assert_eq!((again.followed, again.retried), (1, 1));
    split.end(|_| Some(away()));
    assert!(split.ran().next().is_none(), "it is in nobody's way");
    let outcomes = split.finish().expect_err("both failed").outcomes;
    let failed = [Certainty::Rejected, Certainty::NotSent].map(CommandOutcome::Failed);
    assert_eq!(outcomes, failed);
}

#[test]
fn t8_what_waits_to_be_sent_again_keeps_no_other_slot() {
    let mut pipeline = pipe();
    pipeline.set("k", 1).set("other", 1).get("k").ping();
    let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let waiting = |split: &SplitPipeline<'_, Fault>| split.waiting_slots().collect::<Vec<_>>();
    let (k, other) = (Some(slot("k")), Some(slot("other")));
    assert_eq!(waiting(&split), [k, other, k, None]);
    split.to_send(|_| ());
    assert!(waiting(&split).is_empty(), "they are under way");
    let moved = server_error(&format!("MOVED {} h:1", slot("other")));
    let [done, pong] = [Value::Okay, Value::Okay];
    split.record(&[0, 1, 2, 3], vec![done, moved, Value::Nil, pong], None);
    assert_eq!(split.again(ALL, |_| true).followed, 1);
    assert_eq!(waiting(&split), [other]);
}

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
fn t8_what_may_have_run_and_was_not_sent_again_in_time_is_unknown() {
    let mut pipeline = pipe();
    pipeline.set("k", 1);
    let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let parts = split.to_send(|_| "one");
    let certainty = Certainty::Unknown;
    let error = Fault::Lost;
    split.record(
        parts[0].units(),
        Vec::new(),
        Some(Failed { error, certainty }),
    );
    assert_eq!(split.again(ALL, |_| true).retried, 1);
    let failed = split.finish().expect_err("its time is over");
    assert_eq!(failed.certainty, Certainty::Unknown);
}

#[test]
fn t8_t22_what_failed_at_a_node_that_serves_its_slot_still_is_not_sent_again_beside_others() {
    let mut pipeline = pipe();
    pipeline.set("k", 1).set("other", 1).set("left", 1);
    let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let parts = split.to_send(|target| target.slot);
    let failed = |certainty| Failed {
        error: Fault::Lost,
        certainty,
    };
    for part in &parts {
        let certainty = match part.units() {
            [1] => Certainty::NotSent,
            _ => Certainty::Unknown,
        };
        split.record(part.units(), Vec::new(), Some(failed(certainty)));
    }
    split.end_here(&[0, 1]);
    assert_eq!(split.slot_of(2), Some(slot("left")));
    assert_eq!(split.again(ALL, reads_and_last_wins).retried, 1);
    let parts = split.to_send(|_| ());
    assert_eq!(parts[0].units(), [2]);
}

#[test]
fn t8_t22_what_would_go_back_where_it_may_still_run_ends_and_is_unknown() {
    let mut pipeline = pipe();
    pipeline.set("k", 1).get("k").set("other", 1);
    let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let parts = split.to_send(|target| target.slot);
    let failed = |certainty| Failed {
        error: Fault::Lost,
        certainty,
    };
    for part in &parts {
        let failed = failed(Certainty::Unknown);
        split.record(part.units(), Vec::new(), Some(failed));
    }
    assert_eq!(split.again(ALL, |_| true).retried, 3);
    let ends = Some(slot("k"));
    split.end(|target| (target.slot == ends).then(|| failed(Certainty::NotSent)));
    let parts = split.to_send(|_| ());
    assert_eq!(parts[0].units(), [2]);
    split.record(&[2], vec![Value::Okay], None);
    assert!(split.again(ALL, |_| true).is_nothing(), "they have ended");
    let outcomes = split.finish().expect_err("two failed").outcomes;
    let unknown = CommandOutcome::Failed(Certainty::Unknown);
    let set = CommandOutcome::Answered(Value::Okay);
    assert_eq!(outcomes, [unknown.clone(), unknown, set]);
}

#[test]
fn c2_what_may_have_run_before_its_redirect_is_unknown_when_the_new_owner_is_away() {
    for before in [false, true] {
        let mut pipeline = pipe();
        pipeline.set("k", 1);
        let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
        let parts = split.to_send(|_| "old");
        if before {
            split.may_have_run_before(parts[0].units());
        }
        let moved = server_error(&format!("MOVED {} h:1", slot("k")));
        split.record(parts[0].units(), vec![moved], None);
        assert_eq!(split.again(ALL, |_| false).followed, 1);
        let parts = split.to_send(|_| "new");
        let away = Failed {
            error: Fault::Lost,
            certainty: Certainty::NotSent,
        };
        split.record(parts[0].units(), Vec::new(), Some(away));
        let failed = split.finish().expect_err("nobody serves it");
        assert_eq!(failed.certainty == Certainty::Unknown, before);
    }
}

#[test]
fn t10_a_script_follows_try_again_in_the_server_s_own_words_only() {
    let follows = |words: &str, error: &str| {
        let mut pipeline = pipe();
        pipeline.add_command(self::words(words));
        let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
        let parts = split.to_send(|_| "one");
        split.record(parts[0].units(), vec![server_error(error)], None);
        split.again(ALL, |_| false).followed == 1
    };
    let own = "TRYAGAIN Multiple keys request during rehashing of slot";
    assert!(follows("EVAL s 2 {k}1 {k}2", own));
    assert!(
        !follows("EVAL s 1 {k}1", own),
        "a server never says so of one"
    );
    assert!(!follows(
        "EVAL s 2 {k}1 {k}2",
        "TRYAGAIN the stock is locked"
    ));
}

#[test]
fn t10_a_script_follows_one_redirect_in_a_row_and_none_to_where_it_ran() {
    let moved = format!("MOVED {} h:1", slot("k"));
    let mut pipeline = pipe();
    pipeline.add_command(words("EVAL s 1 k"));
    for (ran, followed) in [(false, [1, 0]), (true, [0, 0])] {
        let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
        let rounds = [(); 2].map(|()| {
            for part in split.to_send(|_| "one") {
                split.record(part.units(), vec![server_error(&moved)], None);
            }
            if ran {
                split.script_has_run(0);
            }
            split.again(ALL, |_| false).followed
        });
        assert_eq!(rounds, followed);
    }
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

#[test]
fn t9_a_slot_may_have_commands_in_two_parts_of_one_node_around_those_of_an_ask() {
    let mut pipeline = pipe();
    pipeline
        .set("{other}1", 0)
        .set("{k}1", 1)
        .set("{k}2", 2)
        .set("{other}2", 3);
    let mut split = SplitPipeline::<Fault>::new(&pipeline, DivideMset::No).expect("divided");
    let parts = split.to_send(|_| "old");
    let moved = |key| server_error(&format!("MOVED {} h:1", slot(key)));
    let ask = server_error(&format!("ASK {} h:1", slot("k")));
    let answers = vec![moved("other"), ask, moved("k"), moved("other")];
    split.record(parts[0].units(), answers, None);
    split.again(ALL, |_| false);
    let parts = split.to_send(|_| "new");
    let told: Vec<_> = parts
        .iter()
        .map(|part| (part.asking, part.units()))
        .collect();
    assert_eq!(told, [(false, &[0][..]), (true, &[1]), (false, &[2, 3])]);
}
