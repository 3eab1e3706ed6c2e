use std::io::Write;

use crate::program::run;

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().suffix(".toml").tempfile().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

const AUTH: &str = "[auth]\nissuer = 'us'\naudience = 'steadfast'\n[auth.keys.dev]\nalgorithm = 'HS256'\n\
                    secret = 'hunter2-hunter2-hunter2-hunter2-hunter2'\n";

#[tokio::test]
async fn s6_a_token_is_printed_alone_and_holds_no_secret() {
    let file = file(AUTH);
    let path = file.path().to_str().unwrap();
    let ended = run(&["token", "--config", path, "--role", "operator"]).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    let token = ended.stdout.trim_end();
    assert_eq!(token.split('.').count(), 3, "{}", ended.all());
    assert!(!token.contains(char::is_whitespace) && ended.stderr.is_empty());
    assert!(!ended.all().contains("hunter2"));
}

#[tokio::test]
async fn s6_a_token_that_cannot_be_issued_says_why() {
    let none = file("[log]\nlevel = 'info'\n");
    let ended = run(&["token", "--config", none.path().to_str().unwrap()]).await;
    assert_eq!(ended.status, Some(78), "{}", ended.all());
    assert!(ended.stderr.contains("[auth]"), "{}", ended.all());
    let some = file(AUTH);
    let path = some.path().to_str().unwrap();
    let ended = run(&["token", "--config", path, "--key", "other"]).await;
    assert_eq!(ended.status, Some(2), "{}", ended.all());
    assert!(ended.stderr.contains("dev"), "{}", ended.all());
    let ended = run(&["token", "--config", path, "--role", "root"]).await;
    assert_eq!(ended.status, Some(2), "{}", ended.all());
}
