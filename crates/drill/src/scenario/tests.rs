use super::*;

const SMALL: &str =
    "name = 'x'\nphases = { baseline = '1s', fault = '2s', recovery = '1s', recovered = '1s' }\n";

fn error(rest: &str) -> ScenarioError {
    Scenario::parse(&format!("{SMALL}{rest}")).unwrap_err()
}

#[test]
fn d2_every_builtin_scenario_parses_and_says_in_a_sentence_what_it_shows() {
    for scenario in all() {
        assert!(
            scenario.about.ends_with('.') && scenario.about.len() > 20,
            "{}",
            scenario.name
        );
        assert_eq!(builtin(&scenario.name).as_ref(), Some(&scenario));
    }
}

#[test]
fn d2_a_builtin_scenario_is_over_in_half_a_minute_unless_its_length_is_the_point() {
    for scenario in all()
        .iter()
        .filter(|s| !["restart-45s", "high-load"].contains(&s.name.as_str()))
    {
        assert!(
            scenario.phases.total() <= Duration::from_secs(28),
            "{} takes {:?}",
            scenario.name,
            scenario.phases.total()
        );
    }
}

#[test]
fn d2_a_mistake_is_reported_at_its_line_and_column() {
    let cases = [
        ("[load]\nrate = 0\n", (4, 8), "from 0.01"),
        ("[load]\nrate = 5\ncallers = 5\n", (5, 11), "both"),
        ("[load]\nwrites = 1.5\n", (4, 10), "between 0 and 1"),
        ("[load]\nwrites = nan\n", (4, 10), "between 0 and 1"),
        (
            "[thresholds]\np99_elsewhere = nan\n",
            (4, 17),
            "between 0.01 and 1000000",
        ),
        (
            "[load]\nrate = 5\nwrites = 1\n",
            (5, 10),
            "judged by its reads",
        ),
        ("[load]\nwrites = 1.0\n", (4, 10), "judged by its reads"),
        (
            "[load]\nrate = 100\nwrites = 0.9999\n",
            (5, 10),
            "fewer than 3",
        ),
        ("[load]\nrate = 0.5\n", (4, 8), "longer phases"),
        ("[load]\ncallers = 1\npause = '1s'\n", (4, 11), "more calls"),
        ("[load]\nspeed = 5\n", (4, 1), "unknown field"),
        ("[[steps]]\nfault = 'earthquake'\n", (4, 9), "earthquake"),
        (
            "[[steps]]\nfault = 'crash'\nlatency = '5ms'\n",
            (5, 11),
            "takes no latency",
        ),
        ("[[steps]]\nfault = 'latency'\n", (4, 9), "needs `latency`"),
        (
            "[[steps]]\nfault = 'crash'\nat = '1s'\nfor = '5s'\n",
            (6, 7),
            "after the fault phase",
        ),
        (
            "[[steps]]\nfault = 'crash'\nfor = '5 parsecs'\n",
            (5, 7),
            "parsecs",
        ),
        ("[[steps]]\nfault = 'crash'\ntimes = 3\n", (5, 9), "`every`"),
        (
            "[[steps]]\nfault = 'crash'\nfor = '1s'\n[[steps]]\nfault = 'crash'\nat = '500ms'\n",
            (7, 9),
            "broken already",
        ),
        (
            "[[steps]]\nfault = 'certificate_wrong'\n[[steps]]\nfault = 'resp_silence'\n",
            (6, 9),
            "reads the protocol",
        ),
        (
            "[[steps]]\nfault = 'certificate_wrong'\n[[steps]]\nfault = 'certificate_expired'\n",
            (6, 9),
            "one certificate at a time",
        ),
        (
            "[[steps]]\nfault = 'certificate_wrong'\n[[steps]]\nfault = 'crash'\n",
            (6, 9),
            "would heal certificate_wrong",
        ),
        (
            "[[steps]]\nfault = 'old_snapshot'\n[[steps]]\nfault = 'certificate_expired'\nat = '1s'\n",
            (6, 9),
            "hears nobody for old_snapshot",
        ),
        (
            "[[steps]]\nfault = 'token_expired'\nfor = '1s'\n[[steps]]\nfault = 'loading'\nat = '1500ms'\n",
            (7, 9),
            "would heal token_expired",
        ),
        (
            "[[steps]]\nfault = 'user_deleted'\n[[steps]]\nfault = 'password_changed'\n",
            (6, 9),
            "has its user already",
        ),
        ("[thresholds]\nerrors = '5'\n", (4, 10), "percentage"),
        ("[thresholds]\nstale_answers = '5'\n", (4, 17), "percentage"),
        ("seed = 'x'\n", (3, 8), "invalid type"),
    ];
    for (text, place, says) in cases {
        let error = error(text);
        assert_eq!((error.line, error.column), place, "{text:?}: {error}");
        assert!(error.message.contains(says), "{text:?}: {error}");
    }
}

#[test]
fn d2_what_does_not_touch_may_be_broken_at_once() {
    for (one, other) in [
        ("crash", "database_down"),
        ("crash", "stall"),
        ("maxclients", "certificate_expired"),
        ("oom", "password_changed"),
    ] {
        let text = format!("{SMALL}[[steps]]\nfault = '{one}'\n[[steps]]\nfault = '{other}'\n");
        assert_eq!(
            Scenario::parse(&text).map(|scenario| scenario.steps.len()),
            Ok(2)
        );
    }
    let text = "[[steps]]\nfault = 'certificate_wrong'\nfor = '1s'\n[[steps]]\nfault = 'crash'\nat = '1s'\n";
    assert!(Scenario::parse(&format!("{SMALL}{text}")).is_ok());
}

#[test]
fn more_calls_at_a_rate_take_longer_in_every_phase() {
    let looped = builtin("loop").unwrap();
    let doubled = looped.clone().with_calls(2000);
    assert_eq!(looped.clone().with_calls(1000), looped);
    assert_eq!(doubled.phases.fault, 2 * looped.phases.fault);
    assert_eq!(doubled.steps[0].lasts, 2 * looped.steps[0].lasts);
}

#[test]
fn d2_the_schema_names_what_the_parser_takes() {
    let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
    let names = |at: &str| -> Vec<String> {
        schema
            .pointer(at)
            .unwrap()
            .as_object()
            .unwrap()
            .keys()
            .cloned()
            .collect()
    };
    for (table, at) in [
        ("", "/properties"),
        ("[load]", "/properties/load/properties"),
        ("[phases]", "/properties/phases/properties"),
        ("[[steps]]", "/$defs/step/properties"),
        ("[thresholds]", "/properties/thresholds/properties"),
    ] {
        for name in names(at) {
            // A datetime is nowhere right, so it is refused for its type; an unknown name would
            // be refused for itself.
            let error = Scenario::parse(&format!("{table}\n{name} = 1979-05-27\n")).unwrap_err();
            let unknown = format!("unknown field `{name}`");
            assert!(!error.message.contains(&unknown), "{table} {name}: {error}");
        }
    }
    for fault in schema
        .pointer("/$defs/step/properties/fault/enum")
        .unwrap()
        .as_array()
        .unwrap()
    {
        let error = Scenario::parse(&format!("{SMALL}[[steps]]\nfault = {fault}\nat = '9s'\n"))
            .unwrap_err();
        assert!(
            error.message.contains("after the fault phase"),
            "{fault}: {error}"
        );
    }
}

#[test]
fn phases_follow_each_other() {
    let phases = Scenario::parse(SMALL).unwrap().phases;
    assert_eq!(phases.at(Duration::from_millis(999)), Phase::WarmUp);
    assert_eq!(phases.at(Duration::from_millis(1000)), Phase::Baseline);
    assert_eq!(phases.at(Duration::from_millis(3999)), Phase::Fault);
    assert_eq!(phases.at(Duration::from_millis(9999)), Phase::Recovered);
}

#[test]
fn a_repeated_step_repeats_at_its_interval() {
    let text = format!(
        "{SMALL}[[steps]]\nfault = 'freeze'\nat = '100ms'\nfor = '200ms'\nevery = '500ms'\ntimes = 3\n"
    );
    let scenario = Scenario::parse(&text).unwrap();
    let starts: Vec<_> = scenario.steps[0]
        .spans()
        .map(|span| span.start.as_millis())
        .collect();
    assert_eq!(starts, [100, 600, 1100]);
}

proptest::proptest! {
    #[test]
    fn any_text_is_parsed_or_refused_but_never_panics(text in "(?s).{0,200}") {
        let _ = Scenario::parse(&text);
    }
}

#[test]
fn d2_what_could_leave_its_folder_or_never_end_is_refused_at_its_place() {
    let scenario = |name: &str, load: &str| {
        let small = SMALL.replace("'x'", &format!("\"{name}\""));
        format!("{small}[load]\n{load}\n")
    };
    assert!(Scenario::parse(&scenario("mine-2", "rate = 5")).is_ok());
    for name in ["", "../../tmp/evil", "a/b", "Crash", "x y", "\u{e9}t\u{e9}"] {
        assert!(
            Scenario::parse(&scenario(name, "rate = 5")).is_err(),
            "{name}"
        );
    }
    for load in [
        "rate = 1e-300",
        "rate = nan",
        "rate = 0",
        "rate = 5\ncalls = 18446744073709551615",
    ] {
        assert!(Scenario::parse(&scenario("mine", load)).is_err(), "{load}");
    }
    let text = scenario("mine", "rate = 0.01");
    let least = Scenario::parse(&text.replace("'1s'", "'10m'")).unwrap();
    // However many are asked for, the times stay numbers.
    assert!(least.with_calls(u64::MAX).phases.total() > Duration::ZERO);
}

#[test]
fn d2_a_drill_of_steadfast_itself_refuses_the_wire_to_a_database() {
    let text = "name = 'x'\nphases = { baseline = '2s', fault = '2s', recovery = '2s', recovered = '2s' }\n\
                [[steps]]\nfault = 'latency'\nlatency = '1ms'\non = 'database'\n";
    assert!(Scenario::parse(text).is_ok());
    let error = Scenario::parse_own(text).unwrap_err();
    assert_eq!((error.line, error.column), (6, 6), "{error}");
    assert!(error.message.contains("database_slow"), "{error}");
    let on_redis = text.replace("'database'", "'redis'");
    assert!(Scenario::parse_own(&on_redis).is_ok());
}
