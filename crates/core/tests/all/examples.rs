//! C21: the example runs, and prints what its comment promises.

use std::process::Command;

#[test]
fn c21_the_example_of_the_policies_outlasts_three_failures() {
    let binary = std::env::current_exe().unwrap();
    let profile = binary.ancestors().nth(2).unwrap();
    let example = profile.join("examples").join("policies");
    let run = Command::new(&example)
        .output()
        .expect("`cargo build --examples` builds it");
    assert!(run.status.success());
    let printed = String::from_utf8(run.stdout).unwrap();
    assert_eq!(printed.matches("paper jam: again in ").count(), 3);
    assert!(printed.contains("the breaker is Open"), "{printed}");
    assert!(printed.contains("refused for "), "{printed}");
    assert!(
        printed.ends_with("the breaker is Closed\nprinted\n"),
        "{printed}"
    );
}
