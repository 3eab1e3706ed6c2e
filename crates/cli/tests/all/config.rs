use std::io::Write;

use crate::program::{finish, run, steadfast};

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

#[tokio::test]
async fn three_mistakes_are_all_reported_with_line_and_column_and_status_78() {
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
async fn the_sample_passes_its_own_check() {
    let sample = run(&["config", "sample"]).await;
    let file = file(&sample.stdout);
    let ended = run(&["config", "check", "--config", file.path().to_str().unwrap()]).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
}

#[tokio::test]
async fn a_file_that_is_not_there_is_status_78_and_named() {
    let ended = run(&["config", "check", "--config", "/nowhere/steadfast.toml"]).await;
    assert_eq!(ended.status, Some(78), "{}", ended.all());
    assert!(
        ended.stderr.contains("/nowhere/steadfast.toml"),
        "{}",
        ended.all()
    );
}

#[tokio::test]
async fn show_tells_what_is_in_force_and_no_secret() {
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
