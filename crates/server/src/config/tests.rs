use super::*;
use std::time::Duration;

fn load(text: &str) -> Result<Config, ConfigError> {
    Config::load(&Sources::new().text("test.toml", text))
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect()
}

#[test]
fn s10_three_mistakes_are_reported_at_once_with_line_and_column() {
    let text = "[server]\nlisten = \"nowhere\"\n\n[redis]\ndeadline = 5\n\n[cahce]\nmemory_bytes = \"1MiB\"\n";
    let error = load(text).unwrap_err();
    let places: Vec<(usize, usize)> = error
        .mistakes
        .iter()
        .map(|mistake| match &mistake.place {
            Origin::File { line, column, .. } => (*line, *column),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(places, [(2, 10), (5, 12), (7, 2)]);
    let shown = error.to_string();
    assert!(
        shown.contains("test.toml:5:12: `redis.deadline` is 5"),
        "{shown}"
    );
    assert!(shown.contains("did you mean `cache`?"), "{shown}");
}

#[test]
fn s10_a_class_that_is_not_there_is_named_with_those_that_are() {
    let query = "[queries.q]\nsql = 'SELECT 1'\nkey = 'q'\nttl = 'usr'\n";
    for (classes, help) in [
        ("", "write a `[ttl.usr]`, or leave `ttl` out"),
        ("[ttl.user]\n[ttl.page]", "there are: page, user"),
    ] {
        let text = format!("{query}{classes}");
        let shown = load(&text).unwrap_err().to_string();
        assert!(shown.contains(help), "{shown}");
    }
}

#[test]
fn s10_flags_win_over_variables_over_the_file_over_defaults() {
    let text =
        "[redis]\nurl = \"redis://file\"\nconnections = 2\n[server]\nlisten = \"127.0.0.1:1\"";
    let sources = Sources::new().text("t", text).environment(variables(&[
        ("REDIS_URL", "redis://short"),
        ("DATABASE_URL", "sqlite://other.db"),
        ("HEALTH_CHECK_REDIS_TIMEOUT", "1.5"),
        ("PATH", "/bin"),
    ]));
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.redis.url.expose(), "redis://short");
    assert_eq!(config.database.url.expose(), "sqlite://other.db");
    assert_eq!(config.redis.health_timeout, Duration::from_millis(1500));
    assert_eq!(config.redis.connections, 2);
    assert_eq!(config.redis.in_flight, 8192);

    let sources = sources
        .environment(variables(&[
            ("REDIS_URL", "redis://short"),
            ("STEADFAST__REDIS__URL", "redis://long"),
            ("STEADFAST__REDIS__CONNECTIONS", "3"),
        ]))
        .flag("--listen", "server.listen", "127.0.0.1:2");
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.redis.url.expose(), "redis://long");
    assert_eq!(config.redis.connections, 3);
    assert_eq!(config.server.listen.port(), 2);
}

#[test]
fn s10_a_wrong_variable_or_flag_is_named() {
    let sources = Sources::new()
        .environment(variables(&[
            ("STEADFAST__REDIS__DEADLINE", "soon"),
            ("STEADFAST__REDSI__URL", "redis://x"),
            ("HEALTH_CHECK_REDIS_TIMEOUT", "-1"),
        ]))
        .flag("--listen", "server.listen", "here");
    let shown = Config::load(&sources).unwrap_err().to_string();
    for name in [
        "STEADFAST__REDIS__DEADLINE: ",
        "STEADFAST__REDSI__URL: ",
        "HEALTH_CHECK_REDIS_TIMEOUT: ",
        "--listen: ",
    ] {
        assert!(shown.contains(name), "{name} in {shown}");
    }
}

#[test]
fn s10_settings_that_contradict_each_other_are_named() {
    for (text, key, word) in [
        (
            "[redis]\nreconnect_first = \"9s\"",
            "redis.reconnect_first",
            "contradicts `redis.reconnect_cap`",
        ),
        (
            "[redis]\nresponse_idle_timeout = \"40s\"",
            "redis.response_idle_timeout",
            "contradicts `redis.unresponsive_timeout`",
        ),
        (
            "[redis.retry]\nattempts = 9\nfirst = \"100ms\"",
            "redis.retry.attempts",
            "contradicts `redis.deadline`",
        ),
        (
            "[redis.breaker]\nopen_first = \"9s\"",
            "redis.breaker.open_first",
            "contradicts `redis.breaker.open_cap`",
        ),
        (
            "[queries.q]\nsql = 'SELECT :n'\nkey = 'q:{n}'\nttl = 'c'\nparams.n = {type='integer', min=10, max=5}\n[ttl.c]",
            "queries.q.params.n.max",
            "contradicts `queries.q.params.n.min`",
        ),
        ("[limits]\nbody = '0B'", "limits.body", "more than nothing"),
        (
            "[redis.tls]\nkey = 'k.pem'",
            "redis.tls.key",
            "without `redis.tls.certificate`",
        ),
        (
            "[redis.credentials]\nsource = 'file'",
            "redis.credentials.path",
            "is missing",
        ),
        (
            "[redis]\nreconnect_grace = \"5s\"",
            "redis.reconnect_grace",
            "contradicts `redis.deadline`",
        ),
        (
            "[ttl.a]\nsoft_limit = \"6s\"",
            "ttl.a.soft_limit",
            "longer than `hard_limit`",
        ),
        (
            "[cache]\nvalue_max = \"1GiB\"",
            "cache.value_max",
            "cache.memory_bytes",
        ),
        (
            "[cache]\noutbox_poll = \"5s\"",
            "cache.outbox_poll",
            "outbox_lag_max",
        ),
        (
            "[ttl.report.guard]\nconcurrency = 9",
            "ttl.report.guard.concurrency",
            "more than `database.guard.concurrency`, 8,",
        ),
        (
            "[database.guard]\nrate = 50\n[ttl.report.guard]\nrate = 51",
            "ttl.report.guard.rate",
            "more than `database.guard.rate`, 50,",
        ),
    ] {
        let error = load(text).unwrap_err();
        assert_eq!(error.mistakes.len(), 1, "{text}: {error}");
        let message = &error.mistakes[0].message;
        assert!(message.contains(key) && message.contains(word), "{message}");
    }
}

#[test]
fn s1_a_wrong_query_is_refused_before_a_caller_meets_it() {
    for (text, word) in [
        ("", "is missing"),
        ("sql = 'DELETE FROM t'", "only reads"),
        ("sql = 'SELECT :a'", "does not describe"),
        (
            "sql = 'SELECT 1'\nparams.a.type = 'integer'",
            "does not use",
        ),
        (
            "sql = 'SELECT :a'\nparams.a.type = 'uuid'",
            "must be one of",
        ),
        ("sql = 'SELECT :a'\nparams.a.type = 'pattern'", "ESCAPE '!'"),
        (
            "sql = 'SELECT :a'\nkey = 'k'\nparams.a.type = 'integer'",
            "leaves out `{a}`",
        ),
        ("sql = 'SELECT 1'\ntags = ['t:{b}']", "no parameter"),
        ("sql = 'SELECT 1'\nttl = 'usr'", "there is no `[ttl.usr]`"),
        (
            "sql = 'SELECT :a'\nparams.a = {type='integer', max=5, default=9}",
            "must be between",
        ),
    ] {
        let error = load(&format!("[queries.q]\n{text}\n[ttl.user]\n")).unwrap_err();
        assert_eq!(error.mistakes.len(), 1, "{text}: {error}");
        assert!(error.to_string().contains(word), "{text}: {error}");
    }
}

#[test]
fn the_sample_is_right_for_every_database() {
    for url in [
        "sqlite://x.db",
        "mysql://localhost/x",
        "postgres://localhost/x",
    ] {
        let sources = Sources::new()
            .text("sample", SAMPLE)
            .flag("--database", "database.url", url);
        let config = Config::load(&sources).unwrap();
        assert_eq!(config.queries.len(), 3);
        assert_eq!(config.ttl["user"].fresh, Duration::from_secs(360));
    }
}

#[test]
fn s10_connections_of_statements_say_nothing_of_those_of_queries() {
    let guard = |text| load(text).unwrap().database.guard.concurrency;
    assert_eq!(guard("[database]\nmax_connections = 2"), 8);
    let both = "[database]\nmax_connections = 2\nguard.concurrency = 30";
    assert_eq!(guard(both), 30);
}

#[test]
fn s10_bounds_of_a_class_are_read_and_their_mistakes_placed() {
    let config = load("[database.guard]\nconcurrency = 4\n[ttl.report]\nguard.rate = 20").unwrap();
    let guard = config.ttl["report"].guard.clone().unwrap();
    assert_eq!((guard.concurrency, guard.rate), (4, 20.0));
    assert!(config.show().contains("[ttl.report.guard]"));
    assert!(load("[ttl.user]").unwrap().ttl["user"].guard.is_none());

    let text = "[ttl.report.guard]\nconcurrency = 0\nrate = \"many\"\nrates = 1";
    let error = load(text).unwrap_err();
    let shown = error.to_string();
    for place in [
        "test.toml:2:15: `ttl.report.guard.concurrency`",
        "test.toml:3:8: `ttl.report.guard.rate`",
        "test.toml:4:9: `ttl.report.guard.rates`",
    ] {
        assert!(shown.contains(place), "{place}: {shown}");
    }
}

#[test]
fn s10_what_is_shown_is_complete_redacted_and_readable_again() {
    let sources = Sources::new()
        .text("sample", SAMPLE)
        .flag("--redis", "redis.url", "redis://u:hunter2@h:1/0")
        .flag(
            "--db",
            "database.url",
            "mysql://u:hunter2@h/d?password=hunter2",
        );
    let config = Config::load(&sources).unwrap();
    let shown = config.show();
    assert!(!shown.contains("hunter2"), "{shown}");
    let again = load(&shown).unwrap();
    assert_eq!(again.show(), shown);
    assert_eq!(again.queries, config.queries);
    assert_eq!(again.cache, config.cache);
}

#[test]
fn what_is_not_toml_is_told_once_and_as_such() {
    let error = load("[server\nlisten = 1\n").unwrap_err();
    assert!(error.to_string().contains("not valid TOML"), "{error}");
    assert!(!error.to_string().contains("server.listen"), "{error}");
}

#[test]
fn a_refused_secret_is_not_quoted() {
    let error = load("[redis]\nurl = \"hunter2\"\n[database]\nurl = 123456").unwrap_err();
    assert_eq!(error.mistakes.len(), 2);
    let shown = error.to_string();
    assert!(
        !shown.contains("hunter2") && !shown.contains("123456"),
        "{shown}"
    );
}

#[test]
fn s10_keys_that_could_serve_one_caller_the_rows_of_another_are_refused() {
    let text = r#"
[queries.by_pair]
sql = "SELECT 1 FROM t WHERE a = :a AND b = :b"
params.a.type = "string"
params.b.type = "string"
key = "pair:{a}-{b}"

[queries.by_name]
sql = "SELECT 1 FROM t WHERE name = :name"
params.name.type = "string"
key = "users:{name}"

[queries.list]
sql = "SELECT name FROM t"
key = "users:list"
"#;
    let shown = load(text).unwrap_err().to_string();
    for said in [
        "test.toml:6:7: `queries.by_pair.key` has nothing between `{a}` and `{b}`",
        "test.toml:15:7: `queries.list.key` \"users:list\" can be the same as \"users:{name}\" of `queries.by_name`",
    ] {
        assert!(shown.contains(said), "{shown}");
    }
}

#[test]
fn s10_a_query_that_changes_data_is_refused_wherever_it_says_so() {
    let text =
        "[queries.take]\nsql = \"WITH d AS (DELETE FROM jobs RETURNING id) SELECT id FROM d\"\n";
    let shown = load(text).unwrap_err().to_string();
    assert!(
        shown.contains("holds DELETE, but a query only reads"),
        "{shown}"
    );
}

#[test]
fn invariant_6_no_form_of_a_configuration_shows_a_secret() {
    let text = "[redis]\nurl = 'redis://u:hunter2@h'\n[database]\nurl = 'postgres://u:hunter2@h/d?sslpassword=hunter2'\n\
                [tracing]\nendpoint = 'http://h/v1?key=hunter2'\n[auth]\nissuer = 'a'\naudience = 'b'\n\
                jwks = 'https://u:hunter2@h/k?code=hunter2'\n[auth.keys.k]\nalgorithm = 'HS256'\n\
                secret = 'hunter2-hunter2-hunter2-hunter2-hunter2'\n";
    let sources = Sources::new()
        .text("t", text)
        .environment(variables(&[(
            "STEADFAST__REDIS__URL",
            "redis://u:hunter2@h:7",
        )]))
        .flag("--x", "database.url", "mysql://u:hunter2@h/d");
    let config = Config::load(&sources).unwrap();
    let refused = load(&format!("{text}\nnonsense = 'hunter2'")).unwrap_err();
    let json = serde_json::to_string(&config).unwrap();
    for shown in [
        format!("{config:?} {config:#?} {sources:?}"),
        format!("{refused:?} {refused:#?} {refused}"),
        config.show(),
        json,
    ] {
        assert!(!shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn s10_a_level_that_would_log_nothing_is_refused() {
    for level in [
        "",
        " ",
        "warning",
        "inof",
        "info,debug",
        "sqlx=warn",
        "info,=warn",
        "info,sqlx=loud",
        "info,,",
    ] {
        let error = load(&format!("[log]\nlevel = \"{level}\"")).unwrap_err();
        assert!(
            error.to_string().starts_with("test.toml:2:9: `log.level`"),
            "{level}: {error}"
        );
    }
    for level in [
        "INFO",
        "warn",
        "off",
        "info,sqlx=warn",
        "debug, hyper=off,steadfast_cache::relay=trace",
    ] {
        assert!(
            load(&format!("[log]\nlevel = \"{level}\"")).is_ok(),
            "{level}"
        );
    }
}

#[test]
fn s10_what_would_go_wrong_when_it_runs_is_refused_at_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().display();
    let auth = "[auth]\nissuer = 'i'\naudience = 'a'\n";
    let key = "[auth.keys.one]\nalgorithm = 'HS256'\nsecret = '0123456789abcdef0123456789abcdef'\n";
    for (text, place, word) in [
        (
            "[redis]\nurl = 'redis://h/notadb'".to_owned(),
            "2:7: `redis.url`",
            "cannot be used",
        ),
        (
            "[redis]\nurl = 'redis://:hunt#er2@h'".to_owned(),
            "2:7: `redis.url`",
            "%23",
        ),
        (
            "[redis]\nurl = 'h:6380,password=hunter2,ssl=True'".to_owned(),
            "2:7: `redis.url`",
            "rediss://:PASSWORD@HOST:6380",
        ),
        (
            "[redis]\nurl = 'redis://:hunt@er2/@h:1'".to_owned(),
            "2:7: `redis.url`",
            "%40",
        ),
        (
            "[database]\nurl = 'postgres://h/db?sslmode=bogus'".to_owned(),
            "2:7: `database.url`",
            "bogus",
        ),
        (
            "[database]\nurl = 'mysql://u:hunt/er2@h/db'".to_owned(),
            "2:7: `database.url`",
            "%2F",
        ),
        (
            "[database]\nurl = 'sqlite::memory:'".to_owned(),
            "2:7: `database.url`",
            "in memory",
        ),
        (
            "[database]\nurl = 'sqlite://x?mode=memory'".to_owned(),
            "2:7: `database.url`",
            "in memory",
        ),
        (
            "[server]\nhosts = ['https://a.example']".to_owned(),
            "2:9: `server.hosts`",
            "without scheme",
        ),
        (
            "[server]\ntrusted_proxies = ['10.0.0.0/99']".to_owned(),
            "2:19: `server.trusted_proxies`",
            "10.0.0.0/8",
        ),
        (
            "[limits]\nbody = '64GiB'".to_owned(),
            "2:8: `limits.body`",
            "more than 1GiB",
        ),
        (
            format!("{auth}audit = '/nowhere/audit.log'\n{key}"),
            "4:9: `auth.audit`",
            "no such folder",
        ),
        (
            format!("{auth}audit = '{folder}'\n{key}"),
            "4:9: `auth.audit`",
            "a folder",
        ),
        (
            format!("{auth}jwks = '{folder}'\n"),
            "4:8: `auth.jwks`",
            "a folder",
        ),
        (
            "[statements.s]\nsql = 'DELETE FROM t'\ninvalidates.keys = ['t:{returned.id}']"
                .to_owned(),
            "3:20: `statements.s.invalidates.keys`",
            "RETURNING",
        ),
        (
            "[queries.q]\nsql = 'SELECT 1'\ntags = ['t:{returned.id}']".to_owned(),
            "3:8: `queries.q.tags`",
            "no parameter",
        ),
    ] {
        let sources = Sources::new().text("test.toml", &text).to_serve();
        let error = Config::load(&sources).unwrap_err();
        assert_eq!(error.mistakes.len(), 1, "{text}: {error}");
        let said = error.to_string();
        assert!(
            said.starts_with(&format!("test.toml:{place}")),
            "{text}: {said}"
        );
        assert!(
            said.contains(word) && !said.contains("hunt"),
            "{text}: {said}"
        );
    }
    let deep = format!("a = {}{}", "[".repeat(10_000), "]".repeat(10_000));
    let said = load(&deep).unwrap_err().to_string();
    assert!(said.starts_with("test.toml:1:"), "{said}");
    assert!(load("[server]\nhosts = ['a.example', '[::1]', '10.0.0.1']").is_ok());
}

#[test]
fn s10_a_variable_with_one_underscore_for_two_is_refused_and_others_are_not_ours() {
    let asked = |name: &str| {
        let pairs = [(name, "127.0.0.1:9000")];
        Config::load(&Sources::new().environment(variables(&pairs)))
    };
    for (name, wanted) in [
        ("STEADFAST_SERVER_LISTEN", "STEADFAST__SERVER__LISTEN"),
        ("STEADFAST_REDIS_URL", "STEADFAST__REDIS__URL"),
        (
            "STEADFAST_DATABASE_GUARD_RATE",
            "STEADFAST__DATABASE__GUARD__RATE",
        ),
    ] {
        let said = asked(name).unwrap_err().to_string();
        assert!(
            said.starts_with(&format!("{name}: ")) && said.contains(wanted),
            "{said}"
        );
    }
    // The program's own, and what Kubernetes sets for services called steadfast and
    // steadfast-redis.
    for name in [
        "STEADFAST_URL",
        "STEADFAST_CONFIG",
        "STEADFAST_PORT",
        "STEADFAST_SERVICE_HOST",
        "STEADFAST_REDIS_PORT",
    ] {
        assert!(asked(name).is_ok(), "{name}");
    }
}
