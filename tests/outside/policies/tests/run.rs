//! The printer.

use std::process::Command;

#[test]
fn c21_a_program_with_the_policies_alone_brings_its_own_clock() {
    let ran = Command::new(env!("CARGO_BIN_EXE_policies"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(said.contains("the breaker is Open\n"), "{said}");
    assert!(said.ends_with("printed\n"), "{said}");
}
