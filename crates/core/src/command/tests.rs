use proptest::prelude::*;

use super::*;

fn words(text: &str) -> impl Iterator<Item = &[u8]> + Clone {
    text.split(' ').map(str::as_bytes)
}

fn effect(text: &str) -> Effect {
    classify(words(text)).effect
}

#[test]
fn every_name_is_found_in_any_case_and_once_only() {
    let mut seen = std::collections::HashSet::new();
    for name in table::names() {
        assert!(seen.insert(name), "{name} is in two groups");
        assert_eq!(classify(words(name)).name, name);
        assert_eq!(classify(words(&name.to_lowercase())).name, name);
    }
    assert!(seen.len() > 350);
}

#[test]
fn what_is_unknown_is_opaque_and_keeps_metrics_bounded() {
    let long = "GET".repeat(1_000_000);
    for name in [
        "",
        "GETS",
        "GE",
        "JSON.SET",
        "CLIENT KILL",
        "UNKNOWN",
        "GET\0",
        &long,
    ] {
        let class = classify([name.as_bytes(), b"KILL"].into_iter());
        assert_eq!(
            (class.name, class.effect, class.first_key),
            ("UNKNOWN", Effect::Opaque, None)
        );
        assert_eq!(class.shared, Shared::Yes);
    }
}

#[test]
fn an_unknown_subcommand_of_client_may_change_the_connection() {
    let class = classify(words("CLIENT SOMETHING-NEW"));
    assert_eq!((class.name, class.effect), ("CLIENT", Effect::Opaque));
    assert_eq!(class.shared, Shared::No(Alternative::Session));
    assert_eq!(classify(words("CONFIG SOMETHING-NEW")).shared, Shared::Yes);
}

#[test]
fn a_command_without_a_name_is_refused() {
    assert_eq!(
        classify([].into_iter()).shared,
        Shared::No(Alternative::Unsupported)
    );
    assert!(keys([].into_iter()).is_empty());
}

#[test]
fn effects_are_ordered_so_that_the_worst_of_a_pipeline_is_its_maximum() {
    use Effect::*;
    let order = [Read, LastWins, Conditional, Accumulating, Opaque, Control];
    assert!(order.is_sorted());
}

/// Commands that later servers added cannot be tried on the server at hand, so each is held to its
/// documentation here.
#[test]
fn commands_of_later_servers_are_judged_by_their_arguments() {
    use Effect::*;
    for (command, expected) in [
        ("SET k v IFEQ old", Conditional),
        ("SET k v SOMETHING-NEW", Opaque),
        ("GETEX k SOMETHING-NEW", Opaque),
        ("HEXPIRE h 60 FIELDS 1 f", LastWins),
        ("HEXPIRE h 10 FIELDS 1 f", Conditional),
        ("HEXPIRE h 0 FIELDS 1 f", Conditional),
        ("HPEXPIRE h 10 NX FIELDS 1 f", Conditional),
        ("HPERSIST h FIELDS 1 f", Conditional),
        ("HGETEX h FIELDS 1 PERSIST", Read),
        ("HGETEX h EX 60 FIELDS 1 f", LastWins),
        ("HGETEX h EXAT 4000000000 FIELDS 1 f", Accumulating),
        ("HGETDEL h FIELDS 1 f", Accumulating),
        ("HSETEX h EX 10 FIELDS 1 f NX", LastWins),
        ("HSETEX h FIELDS 1 f v FNX", Conditional),
        ("HSETEX h FIELDS 2 f v g w EX 10", LastWins),
        ("HSETEX h FIELDS 2 f v FXX w EX 10", LastWins),
        ("HSETEX h FIELDS 1 f v SOMETHING-NEW", Opaque),
        ("HGETEX h FIELDS 1 f", Read),
        ("HGETEX h FIELDS 1 f EX 60", LastWins),
        ("HGETEX h FIELDS 1 f EX 1", Accumulating),
        ("HGETEX h FIELDS 1 f PX 60000", LastWins),
        ("HGETEX h FIELDS 1 f PX 59999", Accumulating),
        ("HGETEX h FIELDS 1 f PERSIST", LastWins),
        ("HGETEX h FIELDS 2 EX 60", Read),
        ("HGETEX h FIELDS 1 f SOMETHING-NEW", Opaque),
        ("HEXPIRE h 60 FIELDS 1 f NX", Conditional),
        ("HEXPIRE h 60 FIELDS 2 f NX", LastWins),
        ("HEXPIRE h 60 GT FIELDS 1 f", Conditional),
        ("HPEXPIRE h 60000 FIELDS 1 f LT", Conditional),
        (
            "HPEXPIRE h 60000 FIELDS 99999999999999999999 f LT",
            Conditional,
        ),
        ("HPEXPIRE h 60000 FIELDS -1", LastWins),
        ("FUNCTION RESTORE payload REPLACE", LastWins),
        ("FUNCTION RESTORE payload APPEND", Conditional),
        ("HSETEX h FNX EX 10 FIELDS 1 f v", Conditional),
        ("MSETEX 2 a 1 NX 2 EX 10", LastWins),
        ("MSETEX 1 a 1 NX", Conditional),
        ("MSETEX 99999999999999999999 a 1 NX", LastWins),
        ("XADD s KEEPREF MAXLEN ~ 10 LIMIT 5 * f v", Accumulating),
        ("XADD s IDMPAUTO p * f v", Accumulating),
        ("XACKDEL s g IDS 1 1-1", Conditional),
        ("BITFIELD k SOMETHING-NEW", Opaque),
        ("XREAD STREAMS s +", Conditional),
        ("XREAD STREAMS $ 0", Read),
    ] {
        assert_eq!(effect(command), expected, "{command}");
    }
    assert_eq!(keys(words("MSETEX 2 a 1 b 2 EX 10")).as_slice(), [2, 4]);
    assert_eq!(
        classify(words("WAITAOF 1 1 250")).blocking,
        Some(BlockFor::Time(Duration::from_millis(250)))
    );
    assert_eq!(
        classify(words("WAITAOF 1 1 250")).shared,
        Shared::No(Alternative::Session)
    );
}

/// The word behind an unknown option may be an option, too.
#[test]
fn c13_an_unknown_option_of_a_command_that_may_block_means_that_it_blocks() {
    let ms = |ms| Some(BlockFor::Time(Duration::from_millis(ms)));
    for (command, expected) in [
        (
            "XREADGROUP GROUP g c CLAIM 100 BLOCK 250 STREAMS k >",
            ms(250),
        ),
        ("XREADGROUP GROUP g c CLAIM 100 STREAMS k >", None),
        ("XREADGROUP GROUP g c CLAIM block STREAMS k >", None),
        ("XREADGROUP GROUP g c NEW 1 BLOCK 250 STREAMS k >", ms(250)),
        (
            "XREADGROUP GROUP g c NEW BLOCK 0 STREAMS k >",
            Some(BlockFor::Forever),
        ),
        ("XREADGROUP GROUP g c NEW 1 STREAMS k >", ms(0)),
        ("XREAD NEW STREAMS BLOCK 0", ms(0)),
        ("XREAD count 1 noack streams k 0", None),
    ] {
        let class = classify(words(command));
        assert_eq!(class.blocking, expected, "{command}");
        assert!(class.first_key.is_some(), "{command}");
    }
    let key = |command| keys(words(command)).to_vec();
    assert_eq!(key("XREADGROUP GROUP g c CLAIM streams STREAMS k >"), [7]);
    assert_eq!(key("XREADGROUP GROUP g c NEW 1 STREAMS a b > >"), [7, 8]);
}

#[test]
fn c2_only_of_scripts_and_modules_the_words_of_an_error_are_not_the_servers() {
    for name in table::names() {
        let scripts = [
            "EVAL",
            "EVALSHA",
            "FCALL",
            "EVAL_RO",
            "EVALSHA_RO",
            "FCALL_RO",
        ];
        let expected = match name {
            name if scripts.contains(&name) => Errors::ProveNothing,
            "MIGRATE" => Errors::MayFollowAPart,
            _ => Errors::Refuse,
        };
        assert_eq!(classify(words(name)).errors, expected, "{name}");
    }
    let unknown = classify(words("JSON.SET k $ 1"));
    assert_eq!(unknown.errors, Errors::OfNoKnownCommand);
}

#[test]
fn c13_the_keys_of_a_command_are_given_by_name_and_those_that_it_does_not_name_are_known_of() {
    let names = |command| {
        key_names(words(command))
            .map(str::from_utf8)
            .collect::<Result<Vec<_>, _>>()
    };
    assert_eq!(names("MSET a 1 b 2"), Ok(vec!["a", "b"]));
    assert_eq!(
        names("ZUNIONSTORE d 2 a b WEIGHTS 1 2"),
        Ok(vec!["d", "a", "b"])
    );
    assert_eq!(names("GET a"), Ok(vec!["a"]));
    assert_eq!(names("PING"), Ok(vec![]));
    for (command, further) in [
        ("FLUSHALL", true),
        ("flushdb ASYNC", true),
        ("SCAN 0", true),
        ("KEYS *", true),
        ("DBSIZE", true),
        ("RANDOMKEY", true),
        ("SWAPDB 0 1", true),
        ("SORT l BY w_*", true),
        ("SORT_RO l BY w_*", true),
        ("JSON.SET k $ 1", true),
        ("EVAL script 0", true),
        ("FCALL_RO f 0", true),
        ("EVAL script 1 k", false),
        ("MIGRATE h 1 k 0 1", false),
        ("MSET a 1 b 2", false),
        ("PING", false),
        ("CONFIG GET x", false),
    ] {
        assert_eq!(
            reaches_further(&classify(words(command))),
            further,
            "{command}"
        );
    }
}

#[test]
fn the_timeout_of_a_blocking_command_is_read_in_its_own_unit_and_place() {
    let ms = |ms| Some(BlockFor::Time(Duration::from_millis(ms)));
    for (command, expected) in [
        ("BLPOP a b 0", Some(BlockFor::Forever)),
        ("BLPOP a b 0.0", Some(BlockFor::Forever)),
        ("BRPOP a 1.5", ms(1_500)),
        ("BZPOPMIN a 2", ms(2_000)),
        ("BLMOVE a b LEFT RIGHT 3", ms(3_000)),
        ("BRPOPLPUSH a b 4", ms(4_000)),
        ("BLMPOP 0.25 1 a LEFT", ms(250)),
        ("BZMPOP 0 1 a MIN", Some(BlockFor::Forever)),
        ("XREAD BLOCK 750 STREAMS s $", ms(750)),
        ("XREAD COUNT 5 BLOCK 0 STREAMS s $", Some(BlockFor::Forever)),
        ("XREAD STREAMS BLOCK 0", None),
        ("XREADGROUP GROUP g c BLOCK 20 STREAMS s >", ms(20)),
        ("XREADGROUP GROUP g c STREAMS s >", None),
        ("WAIT 1 100", ms(100)),
        ("LPOP a", None),
        // Refused by the server at once.
        ("BLPOP a -1", ms(0)),
        ("BLPOP a nan", ms(0)),
        ("BLPOP a inf", ms(0)),
        ("BLPOP", ms(0)),
        ("XREAD BLOCK", ms(0)),
    ] {
        assert_eq!(classify(words(command)).blocking, expected, "{command}");
    }
}

#[test]
fn a_cursor_of_redis_rs_is_an_argument_like_any_other() {
    let mut cmd = redis::cmd("HSCAN");
    cmd.arg("h").cursor_arg(7).arg("COUNT").arg(10);
    let class = classify(arguments(&cmd));
    assert_eq!((class.name, class.first_key), ("HSCAN", Some(1)));
    assert_eq!(arguments(&cmd).len(), 5);
}

proptest! {
    #[test]
    fn any_arguments_are_judged_without_panic_and_keys_lie_among_them(
        name in prop::sample::select(table::names().collect::<Vec<_>>()),
        rest in prop::collection::vec(prop_oneof![
            prop::sample::select(vec![
                "STORE", "STOREDIST", "STREAMS", "KEYS", "BLOCK", "COUNT", "GROUP", "EX", "NX", "GET", "FIELDS",
                "MAXLEN", "~", "*", "", "0", "1", "2", "-1", "3", "99999999999999999999", "9223372036854775807",
                "-9223372036854775808", "nan", "1e400", "REPLACE", "AUTH2",
            ]).prop_map(|word| word.as_bytes().to_vec()),
            prop::collection::vec(any::<u8>(), 0..6),
        ], 0..12),
    ) {
        let args: Vec<&[u8]> = name.split(' ').map(str::as_bytes).chain(rest.iter().map(Vec::as_slice)).collect();
        let class = classify(args.iter().copied());
        let keys = keys(args.iter().copied());
        prop_assert_eq!(class.first_key, keys.first().copied());
        prop_assert!(keys.iter().all(|&key| (1..args.len()).contains(&key)));
    }
}

#[test]
fn a_group_may_be_called_streams_or_block_and_still_waits_as_long_as_it_says() {
    let blocking = |text| classify(words(text)).blocking;
    assert_eq!(
        blocking("XREADGROUP GROUP streams w BLOCK 0 STREAMS k >"),
        Some(BlockFor::Forever)
    );
    assert_eq!(blocking("XREADGROUP GROUP block w STREAMS k >"), None);
    assert_eq!(blocking("XREAD COUNT 2 STREAMS block 0"), None);
}

#[test]
fn c13_a_blocking_command_made_again_waits_for_the_rest_of_its_timeout_and_never_for_ever() {
    let left = |text: &str, passed| {
        let mut cmd = redis::Cmd::new();
        words(text).for_each(|word| {
            cmd.arg(word);
        });
        let left = with_time_left(&cmd, Duration::from_millis(passed))?;
        let args: Vec<_> = arguments(&left).map(String::from_utf8_lossy).collect();
        Some(args.join(" "))
    };
    for (text, passed, rest) in [
        ("BLPOP a b 5", 1_250, "BLPOP a b 3.750"),
        ("brpop a 0.5", 100, "brpop a 0.400"),
        ("BLMOVE a b LEFT RIGHT 5", 0, "BLMOVE a b LEFT RIGHT 5.000"),
        ("BLMPOP 2 1 2 LEFT", 500, "BLMPOP 1.500 1 2 LEFT"),
        ("WAIT 2 700", 200, "WAIT 2 500"),
        ("WAITAOF 1 2 700", 200, "WAITAOF 1 2 500"),
        (
            "XREAD COUNT 2 BLOCK 900 STREAMS block 900",
            300,
            "XREAD COUNT 2 BLOCK 600 STREAMS block 900",
        ),
        (
            "XREADGROUP GROUP block 9 BLOCK 9 STREAMS s >",
            2,
            "XREADGROUP GROUP block 9 BLOCK 7 STREAMS s >",
        ),
        // What has passed is more than there was.
        ("BLPOP a 1", 1_000, "BLPOP a 0.001"),
        ("BLPOP a 1", 9_000, "BLPOP a 0.001"),
        ("BLPOP a 0.0001", 0, "BLPOP a 0.001"),
        ("XREAD BLOCK 5 STREAMS s $", 5, "XREAD BLOCK 1 STREAMS s $"),
    ] {
        assert_eq!(left(text, passed).as_deref(), Some(rest), "{text}");
    }
    for text in [
        "BLPOP a 0",
        "XREAD BLOCK 0 STREAMS s $",
        "XREAD STREAMS s 0",
        "XREADGROUP GROUP g c SOMETHING-NEW STREAMS s >",
        "BLPOP a soon",
        "BLPOP",
        "GET a",
    ] {
        assert_eq!(left(text, 10), None, "{text}");
    }
}
