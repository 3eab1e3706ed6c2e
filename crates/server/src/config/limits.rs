//! `[limits]`: what one caller, or all together, may ask for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::rate::RateConfig;
use super::section::Section;
use super::units::{Bytes, MIB, duration, secs};

/// `[limits]`: what one caller, or all together, may ask for.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LimitsConfig {
    /// Largest body of a request; default 1 MiB, at most 1 GiB. It is held in memory while it is
    /// read, for each request under way.
    pub body: Bytes,
    /// Time a request may take; default 10 s. Event streams are exempt.
    #[serde(serialize_with = "duration")]
    pub request_timeout: Duration,
    /// Time a client may take to send its headers, and before that for the TLS handshake; default
    /// 10 s.
    #[serde(serialize_with = "duration")]
    pub header_timeout: Duration,
    /// Time for which a client may take nothing of its answer, event streams included; default 30
    /// s. Then its connection is reset. Meanwhile it holds a connection, some 64 KiB of the answer
    /// here, and up to 512 KiB that the system keeps for its socket. Less than some 90 KiB in that
    /// time counts as nothing.
    #[serde(serialize_with = "duration")]
    pub write_timeout: Duration,
    /// Largest result that a query, or a statement with RETURNING, may have, in bytes of its rows;
    /// default 32 MiB. What is beyond it is left out and `truncated` said; a row that alone is
    /// larger is refused. As many times that, and as much again while it is made ready, may be held
    /// at once as there are loads and statements.
    pub result: Bytes,
    /// Requests under way at once; default 4096. Past it they are refused with 503, health and
    /// metrics excepted.
    pub concurrency: usize,
    /// Connections at once; default 16384. Past it 16 more are accepted for one question each, of
    /// which those for health and metrics are answered and all others refused with 503; the rest
    /// wait to be accepted.
    pub connections: usize,
    /// Event streams at once; default 2048.
    pub subscribers: usize,
    /// How long an `Idempotency-Key` is remembered; default 24 h. Each costs a row in the database.
    #[serde(serialize_with = "duration")]
    pub idempotency_ttl: Duration,
    /// Largest answer that is kept under an `Idempotency-Key`; default 64 KiB. A change with a
    /// larger one is refused.
    pub idempotency_body: Bytes,
    /// `[limits.rate.NAME]`: how often callers may ask; default no limit.
    pub rate: BTreeMap<String, RateConfig>,
}

impl LimitsConfig {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        Self {
            body: read_body(section),
            request_timeout: section.positive("request_timeout").unwrap_or(secs(10)),
            header_timeout: section.positive("header_timeout").unwrap_or(secs(10)),
            write_timeout: section.positive("write_timeout").unwrap_or(secs(30)),
            result: section.some_bytes("result").unwrap_or(Bytes(32 * MIB)),
            concurrency: section.count("concurrency", 1, 1_000_000).unwrap_or(4096),
            connections: section.count("connections", 1, 1_000_000).unwrap_or(16384),
            subscribers: section.count("subscribers", 1, 1_000_000).unwrap_or(2048),
            idempotency_ttl: section
                .positive("idempotency_ttl")
                .unwrap_or(secs(24 * 3600)),
            idempotency_body: section.bytes("idempotency_body").unwrap_or(Bytes(64 << 10)),
            rate: RateConfig::read_all(section),
        }
    }
}

fn read_body(section: &Section<'_>) -> Bytes {
    let body = section.some_bytes("body").unwrap_or(Bytes(MIB));
    if body > LARGEST_BODY {
        section.refuse(section.mistake("body", "is more than 1GiB, which no request needs"));
    }
    body
}

const LARGEST_BODY: Bytes = Bytes(1 << 30);
