use std::io::Write;
use std::net::SocketAddr;

use crate::program::{Lines, finish, run, signal, steadfast};
use crate::web::{get, get_with};

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[tokio::test]
async fn s10_three_mistakes_are_all_reported_with_line_and_column_and_status_78() {
    let text = "[redis]\nurl = 'redjs://:hunter2@localhost'\nconections = 3\n\n[server]\ndrain_limit = 'soon'\n";
    let file = file(text);
    let path = file.path().to_str().unwrap();
    let ended = run(&["config", "check", "--config", path]).await;
    assert_eq!(ended.status, Some(78), "{}", ended.all());
    for (place, says) in [
        (":2:", "redjs"),
        (":3:", "conections"),
        (":6:", "drain_limit"),
    ] {
        let found = ended
            .stderr
            .lines()
            .any(|line| line.contains(&format!("{path}{place}")) && line.contains(says));
        assert!(found, "no line with {place} and {says}\n{}", ended.all());
    }
    assert!(
        !ended.stderr.contains("hunter2") && ended.stdout.is_empty(),
        "{}",
        ended.all()
    );
}

#[tokio::test]
async fn s10_what_could_not_be_started_does_not_pass_the_check() {
    for (text, words) in [
        ("[redis.tls]\nca = '/nowhere/ca.pem'", "/nowhere/ca.pem"),
        ("[database]\nurl = 'postgres://h/db?sslmode=bogus'", "bogus"),
        (
            "[auth]\nissuer = 'i'\naudience = 'a'\naudit = '/nowhere/audit.log'\n[auth.keys.one]\nalgorithm = 'HS256'\n\
             secret = '0123456789abcdef0123456789abcdef'",
            "/nowhere",
        ),
    ] {
        let file = file(text);
        let path = file.path().to_str().unwrap();
        for command in [
            &["config", "check", "--config", path][..],
            &["serve", "--listen", "127.0.0.1:0", "--config", path],
        ] {
            let ended = run(command).await;
            assert_eq!(ended.status, Some(78), "{}", ended.all());
            assert!(ended.stderr.contains(words), "{}", ended.all());
        }
    }
}

#[tokio::test]
async fn s10_a_variable_that_is_no_text_is_refused_by_name() {
    use std::os::unix::ffi::OsStrExt;
    let latin = std::ffi::OsStr::from_bytes(b"redis://:p\xe4ss@127.0.0.1:1");
    let mut command = steadfast(&["config", "show"]);
    let ended = finish(command.env("REDIS_URL", latin).spawn().unwrap()).await;
    assert_eq!(ended.status, Some(78), "{}", ended.all());
    assert!(
        ended.stderr.contains("REDIS_URL: is not valid UTF-8"),
        "{}",
        ended.all()
    );
}

#[tokio::test]
async fn s10_the_sample_passes_its_own_check() {
    let sample = run(&["config", "sample"]).await;
    let file = file(&sample.stdout);
    let ended = run(&["config", "check", "--config", file.path().to_str().unwrap()]).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
}

#[tokio::test]
async fn s10_the_check_says_that_a_cache_on_a_cluster_lies_on_one_shard() {
    let file =
        file("namespace = 'shop'\n[redis]\nurl = 'redis-cluster://:hunter2@a:7000,b:7000'\n");
    let path = file.path().to_str().unwrap();
    let ended = run(&["config", "check", "--config", path]).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    assert!(
        ended
            .stdout
            .contains("note: redis.url names a cluster: all of the cache `shop` lies in slot"),
        "{}",
        ended.all()
    );
    assert!(!ended.all().contains("hunter2"), "{}", ended.all());
}

#[tokio::test]
async fn s10_a_file_that_is_not_there_is_status_78_and_named() {
    let ended = run(&["config", "check", "--config", "/nowhere/steadfast.toml"]).await;
    assert_eq!(ended.status, Some(78), "{}", ended.all());
    assert!(
        ended.stderr.contains("/nowhere/steadfast.toml"),
        "{}",
        ended.all()
    );
}

#[tokio::test]
async fn s10_show_tells_what_is_in_force_and_no_secret() {
    let file = file(
        "[redis]\nurl = 'redis://:hunter2@from-file:6379'\n[server]\nlisten = '127.0.0.1:1111'\n",
    );
    let mut command = steadfast(&["config", "show", "--listen", "127.0.0.1:2222", "--config"]);
    command
        .arg(file.path())
        .env("REDIS_URL", "redis://:hunter3@from-environment:6379");
    let ended = finish(command.spawn().unwrap()).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    for word in ["from-environment", "127.0.0.1:2222"] {
        assert!(ended.stdout.contains(word), "{}", ended.all());
    }
    for word in ["hunter", "from-file", "1111"] {
        assert!(!ended.all().contains(word), "{word}: {}", ended.all());
    }
}

#[cfg(not(feature = "entra-id"))]
#[tokio::test]
async fn c16_a_build_without_entra_id_says_so() {
    let file = file("[redis.credentials]\nsource = 'entra'\nidentity = 'managed_identity'\n");
    let ended = run(&["config", "check", "--config", file.path().to_str().unwrap()]).await;
    assert_eq!(ended.status, Some(78), "{}", ended.all());
    for words in ["built without Entra ID", "--features entra-id"] {
        assert!(ended.stderr.contains(words), "{}", ended.all());
    }
}

#[tokio::test]
async fn s6_a_token_that_was_issued_opens_what_a_stranger_may_not_see() {
    let folder = tempfile::tempdir().unwrap();
    let (file, database) = (
        folder.path().join("shop.toml"),
        folder.path().join("shop.db"),
    );
    let secret = "a secret of thirty-two bytes or more";
    let text = format!(
        "[server]\nlisten = '127.0.0.1:0'\ndrain_delay = '0s'\n[database]\nurl = 'sqlite://{}'\n\
         [auth]\nissuer = 'me'\naudience = 'shop'\n[auth.keys.dev]\nalgorithm = 'HS256'\nsecret = '{secret}'\n",
        database.display()
    );
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let token = run(&[
        "token",
        "--config",
        file,
        "--role",
        "operator",
        "--minutes",
        "5",
    ])
    .await;
    assert_eq!(token.status, Some(0), "{}", token.all());

    let mut service = steadfast(&["serve", "--config", file]).spawn().unwrap();
    let line = Lines::of(&mut service).next();
    let address: SocketAddr = line.rsplit('/').next().unwrap().parse().unwrap();
    let stranger = get(address, "/v1/status").await;
    let bearer = format!("Authorization: Bearer {}\r\n", token.stdout.trim());
    let known = get_with(address, "/v1/status", &bearer).await;
    let status = run(&[
        "status",
        &format!("http://{address}"),
        "--token",
        token.stdout.trim(),
    ])
    .await;
    signal(service.id(), "TERM");
    let ended = finish(service).await;
    assert_eq!(
        (stranger.status, known.status),
        (401, 200),
        "{}",
        ended.all()
    );
    assert_eq!(status.status, Some(0), "{}", status.all());
    assert!(!ended.all().contains(secret), "{}", ended.all());

    let none = run(&["token"]).await;
    assert_eq!(none.status, Some(78), "{}", none.all());
}
