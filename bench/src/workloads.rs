//! What is asked of each client.

use std::sync::LazyLock;

use steadfast_drill::process::Redis;

use crate::subjects::{SetUpError, Subject};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Workload {
    Get,
    Set,
    GetLarge,
    SetLarge,
    ManyKeys,
    Pipeline,
}

static KEYS: LazyLock<Vec<String>> =
    LazyLock::new(|| (0..100).map(|n| format!("bench:many:{n:03}")).collect());
static SMALL: [u8; 64] = [b'x'; 64];
static LARGE: [u8; 16 << 10] = [b'x'; 16 << 10];
const SMALL_KEY: &str = "bench:small";
const LARGE_KEY: &str = "bench:large";

impl Workload {
    pub const ALL: [Self; 6] = [
        Self::Get,
        Self::Set,
        Self::GetLarge,
        Self::SetLarge,
        Self::ManyKeys,
        Self::Pipeline,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET of 64 bytes",
            Self::Set => "SET of 64 bytes",
            Self::GetLarge => "GET of 16 KiB",
            Self::SetLarge => "SET of 16 KiB",
            Self::ManyKeys => "MGET of 100 values of 64 bytes",
            Self::Pipeline => "pipeline of 10 GETs of 64 bytes",
        }
    }

    /// One call. A wrong answer is a defect of the bench or of the client, and ends the run.
    pub async fn call<S: Subject>(self, subject: &S) -> Result<(), S::Error> {
        let (came, expected) = match self {
            Self::Get => (subject.get(SMALL_KEY).await?, SMALL.len()),
            Self::Set => (subject.set(SMALL_KEY, &SMALL).await?, SMALL.len()),
            Self::GetLarge => (subject.get(LARGE_KEY).await?, LARGE.len()),
            Self::SetLarge => (subject.set(LARGE_KEY, &LARGE).await?, LARGE.len()),
            Self::ManyKeys => (subject.mget(&KEYS).await?, KEYS.len()),
            Self::Pipeline => (subject.pipeline(&KEYS[..10]).await?, 10),
        };
        assert_eq!(came, expected, "{} was answered wrongly", self.name());
        Ok(())
    }
}

/// Puts there what the reads ask for.
pub async fn fill(redis: &Redis) -> Result<(), SetUpError> {
    let text = |bytes: &'static [u8]| std::str::from_utf8(bytes).expect("it is all x");
    redis.command(&["SET", SMALL_KEY, text(&SMALL)]).await?;
    redis.command(&["SET", LARGE_KEY, text(&LARGE)]).await?;
    for key in KEYS.iter() {
        redis.command(&["SET", key, text(&SMALL)]).await?;
    }
    Ok(())
}
