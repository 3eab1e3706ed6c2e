//! Parts against the whole: a model of one server, and the same divided among many that redirect,
//! refuse and lose what they are sent.

mod again;
mod parts;

use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use redis::{Cmd, ServerError, Value, pipe};

use super::pipeline::{CommandOutcome, PipelineFailed, SplitPipeline, Terms};
use super::*;
use crate::command::Effect;
use crate::redis_rs::CommandRef;

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
