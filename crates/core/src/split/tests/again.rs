//! The commands of a pipeline that are sent again, and where to.

use super::super::pipeline::Target;
use super::*;
use crate::redirect::Routing;

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
    assert_eq!(super::again("GET k; INCR k", &[], said), [0, 1]);
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
