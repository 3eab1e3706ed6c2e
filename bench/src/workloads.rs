//! What is asked of each client.

use std::cell::Cell;
use std::sync::LazyLock;

use steadfast_drill::process::Redis;

use crate::subjects::{SetUpError, Subject};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Workload {
    Get(Size),
    Set(Size),
    ManyKeys,
    Pipeline,
    /// Of 64 bytes, at a key of another slot each time.
    SpreadGet,
    SpreadSet,
}

/// Of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Size {
    Bytes64,
    KiB1,
    KiB16,
    KiB256,
    MiB4,
}

static KEYS: LazyLock<Vec<String>> =
    LazyLock::new(|| (0..100).map(|n| format!("bench:many:{n:03}")).collect());
static VALUE: [u8; 4 << 20] = [b'x'; 4 << 20];

/// The next of the keys that lie in different slots.
fn next_key() -> &'static str {
    thread_local!(static NEXT: Cell<usize> = const { Cell::new(0) });
    let next = NEXT.get();
    NEXT.set(next.wrapping_add(1));
    &KEYS[next % KEYS.len()]
}

impl Size {
    const ALL: [Self; 5] = [
        Self::Bytes64,
        Self::KiB1,
        Self::KiB16,
        Self::KiB256,
        Self::MiB4,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Bytes64 => "64 bytes",
            Self::KiB1 => "1 KiB",
            Self::KiB16 => "16 KiB",
            Self::KiB256 => "256 KiB",
            Self::MiB4 => "4 MiB",
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Bytes64 => "bench:64",
            Self::KiB1 => "bench:1k",
            Self::KiB16 => "bench:16k",
            Self::KiB256 => "bench:256k",
            Self::MiB4 => "bench:4m",
        }
    }

    fn value(self) -> &'static [u8] {
        match self {
            Self::Bytes64 => &VALUE[..64],
            Self::KiB1 => &VALUE[..1 << 10],
            Self::KiB16 => &VALUE[..16 << 10],
            Self::KiB256 => &VALUE[..256 << 10],
            Self::MiB4 => &VALUE,
        }
    }
}

impl Workload {
    /// Those that a GET of 64 bytes is compared by come first.
    pub const ALL: [Self; 12] = [
        Self::Get(Size::Bytes64),
        Self::Set(Size::Bytes64),
        Self::Get(Size::KiB1),
        Self::Set(Size::KiB1),
        Self::Get(Size::KiB16),
        Self::Set(Size::KiB16),
        Self::Get(Size::KiB256),
        Self::Set(Size::KiB256),
        Self::Get(Size::MiB4),
        Self::Set(Size::MiB4),
        Self::ManyKeys,
        Self::Pipeline,
    ];

    /// On a cluster.
    pub const OF_A_CLUSTER: [Self; 4] = [
        Self::SpreadGet,
        Self::SpreadSet,
        Self::Pipeline,
        Self::ManyKeys,
    ];

    /// What the design's ratios are named for.
    pub const GET: Self = Self::Get(Size::Bytes64);
    pub const SET: Self = Self::Set(Size::Bytes64);

    pub fn name(self) -> String {
        match self {
            Self::Get(size) => format!("GET of {}", size.name()),
            Self::Set(size) => format!("SET of {}", size.name()),
            Self::ManyKeys => "MGET of 100 values of 64 bytes".into(),
            Self::Pipeline => "pipeline of 10 GETs of 64 bytes".into(),
            Self::SpreadGet => "GET of 64 bytes, 100 keys in turn".into(),
            Self::SpreadSet => "SET of 64 bytes, 100 keys in turn".into(),
        }
    }

    /// How many callers there are at a time, in three measurements. No more than what all of them
    /// have under way is a few MiB: a client that bounds what it buffers refuses the rest, as it
    /// should.
    pub fn callers(self) -> [usize; 3] {
        match self {
            Self::Get(Size::KiB256) | Self::Set(Size::KiB256) => [1, 8, 64],
            Self::Get(Size::MiB4) | Self::Set(Size::MiB4) => [1, 2, 8],
            _ => [1, 64, 512],
        }
    }

    /// One call. A wrong answer is a defect of the bench or of the client, and ends the run.
    pub async fn call<S: Subject>(self, subject: &S) -> Result<(), S::Error> {
        let (came, expected) = match self {
            Self::Get(size) => (subject.get(size.key()).await?, size.value().len()),
            Self::Set(size) => {
                let value = size.value();
                (subject.set(size.key(), value).await?, value.len())
            }
            Self::ManyKeys => (subject.mget(&KEYS).await?, KEYS.len()),
            Self::Pipeline => (subject.pipeline(&KEYS[..10]).await?, 10),
            Self::SpreadGet => (subject.get(next_key()).await?, 64),
            Self::SpreadSet => {
                let value = Size::Bytes64.value();
                (subject.set(next_key(), value).await?, value.len())
            }
        };
        assert_eq!(came, expected, "{} was answered wrongly", self.name());
        Ok(())
    }
}

/// Puts there what the reads ask for.
pub async fn fill(redis: &Redis) -> Result<(), SetUpError> {
    let text = |size: Size| std::str::from_utf8(size.value()).expect("it is all x");
    for size in Size::ALL {
        redis.command(&["SET", size.key(), text(size)]).await?;
    }
    for key in KEYS.iter() {
        redis.command(&["SET", key, text(Size::Bytes64)]).await?;
    }
    Ok(())
}

/// The same on a cluster, through one of its clients.
pub async fn fill_through<S: Subject>(subject: &S) -> Result<(), S::Error> {
    for key in KEYS.iter() {
        subject.set(key, Size::Bytes64.value()).await?;
    }
    Ok(())
}
