use crate::program::{Ended, finish, run, steadfast};

/// Every command, found by asking for help as a user would: the names that each help lists under
/// "Commands".
async fn every_command() -> Vec<(Vec<String>, Ended)> {
    let mut found = Vec::new();
    let mut open = vec![Vec::<String>::new()];
    while let Some(path) = open.pop() {
        let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
        args.push("--help");
        let ended = run(&args).await;
        let listed = ended
            .stdout
            .split("\nCommands:\n")
            .nth(1)
            .unwrap_or_default();
        for line in listed.lines().take_while(|line| line.starts_with("  ")) {
            let name = line.split_whitespace().next().unwrap();
            if line.starts_with("  ") && !line.starts_with("   ") && name != "help" {
                open.push(path.iter().cloned().chain([name.to_owned()]).collect());
            }
        }
        found.push((path, ended));
    }
    found
}

#[tokio::test]
async fn every_command_explains_itself_and_ends_with_0() {
    let all = every_command().await;
    assert!(all.len() > 6, "the commands could not be found: {all:?}");
    for (path, ended) in all {
        assert_eq!(ended.status, Some(0), "{path:?}: {}", ended.all());
        assert!(
            ended.stdout.contains("Usage: steadfast"),
            "{path:?}: {}",
            ended.all()
        );
        let is_group = ended.stdout.contains("\nCommands:\n");
        assert!(
            is_group || ended.stdout.contains("Example"),
            "{path:?} gives no example: {}",
            ended.all()
        );
        assert!(
            ended.stdout.lines().all(|line| line.chars().count() <= 130),
            "{path:?}: {}",
            ended.all()
        );
    }
}

#[tokio::test]
async fn version_is_the_packages_own() {
    let ended = run(&["--version"]).await;
    assert_eq!(
        ended.stdout.trim(),
        format!("steadfast {}", env!("CARGO_PKG_VERSION"))
    );
}

#[tokio::test]
async fn a_command_line_that_makes_no_sense_is_status_2() {
    for args in [
        &[][..],
        &["brew"],
        &["drill", "run"],
        &["probe", "redis://127.0.0.1", "--workers", "0"],
    ] {
        let ended = run(args).await;
        assert_eq!(ended.status, Some(2), "{args:?}: {}", ended.all());
        assert!(ended.stderr.contains("help"), "{args:?}: {}", ended.all());
    }
}

#[tokio::test]
async fn each_shell_gets_a_completion_script() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = run(&["completions", shell]).await;
        assert_eq!(ended.status, Some(0), "{}", ended.all());
        assert!(ended.stdout.contains("drill"), "{shell}: {}", ended.all());
    }
}

#[tokio::test]
async fn a_reader_that_leaves_early_is_no_error() {
    let mut child = steadfast(&["drill", "list"]).spawn().unwrap();
    drop(child.stdout.take());
    let ended = finish(child).await;
    assert!(ended.stderr.is_empty(), "{}", ended.all());
}
