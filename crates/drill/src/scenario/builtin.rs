//! The scenarios that come with the lab are files like any other: they can be read, copied and changed.

use super::Scenario;

const FILES: &[&str] = &[
    include_str!("../../scenarios/crash.toml"),
    include_str!("../../scenarios/restart-5s.toml"),
];

/// All scenarios that come with the lab, in the order in which they are best met.
pub fn all() -> Vec<Scenario> {
    FILES
        .iter()
        .map(|text| Scenario::parse(text).expect("built-in scenarios parse, as a test shows"))
        .collect()
}

/// The built-in scenario of that name.
pub fn builtin(name: &str) -> Option<Scenario> {
    all().into_iter().find(|scenario| scenario.name == name)
}
