//! `[auth]` as it is written: what is refused at the door, and what a reload notices.

use steadfast_server::Config;
use steadfast_server::config::Sources;

use crate::guarded::{SECRET, base, pem};

#[test]
fn s9_a_key_file_that_was_rotated_under_the_same_name_is_noticed_by_a_reload() {
    let folder = tempfile::tempdir().unwrap();
    let file = pem("k", &folder, SECRET);
    let text = base(&format!(
        "[auth.keys.k]\nalgorithm = \"HS256\"\nfile = \"{file}\"\n"
    ));
    let load = || Config::load(&Sources::new().text("t", &text)).unwrap();
    let before = load();
    assert_eq!(before.auth, load().auth);
    pem("k", &folder, &SECRET.replace('0', "1"));
    assert_ne!(before.auth, load().auth);
    assert!(!format!("{before:?}").contains(SECRET));
}

#[test]
fn s6_an_auth_section_that_would_let_anyone_in_is_refused() {
    let mistakes = |text: &str| -> String {
        match Config::load(&Sources::new().text("t", text)) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    };
    assert!(mistakes("[auth]\nissuer = \"a\"\naudience = \"b\"").contains("names no key"));
    assert!(
        mistakes("[auth]\naudience = \"b\"\njwks = \"/k\"").contains("`auth.issuer` is missing")
    );
    assert!(
        mistakes(&base("jwks = \"http://keys.example/k\"")).contains("must be an https:// address")
    );
    assert!(mistakes(&base("leeway = \"1h\"\njwks = \"/k\"")).contains("longer than 5m"));
    let short = mistakes(&base(
        "[auth.keys.k]\nalgorithm = \"HS256\"\nsecret = \"hunter2hunter2\"",
    ));
    assert!(
        short.contains("needs 32 at least") && !short.contains("hunter2"),
        "{short}"
    );
    assert!(mistakes(&base("[auth.keys.k]\nsecret = \"x\"")).contains("algorithm` is missing"));
    assert!(mistakes(&base("[auth.keys.k]\nalgorithm = \"none\"")).contains("must be one of"));
    assert!(
        mistakes(&base(
            "[auth.keys.k]\nalgorithm = \"RS256\"\nfile = \"/nowhere/k.pem\""
        ))
        .contains("cannot be read")
    );
    assert_eq!(mistakes(&base("jwks = \"https://keys.example/k\"")), "");
}
