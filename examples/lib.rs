//! Nothing but the proof that the examples of the README compile.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
