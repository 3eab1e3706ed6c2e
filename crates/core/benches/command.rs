//! What it costs to judge a command. This is on the path of every call.
//!
//! `cargo bench -p steadfast-core --bench command`

#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use steadfast_core::command::{arguments, classify, keys};

fn judge(c: &mut Criterion) {
    let commands = [
        "GET key",
        "get key",
        "SET key value",
        "SET key value EX 60 NX",
        "MGET a b c d e f g h",
        "ZREVRANGEBYSCORE key 9 0",
        "CLIENT KILL ID 7",
        "XREAD COUNT 5 BLOCK 100 STREAMS a b 0 0",
        "ZUNIONSTORE dest 2 a b",
        "JSON.SET key $ 1",
    ];
    let mut group = c.benchmark_group("classify");
    for text in commands {
        let words: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
        group.bench_function(text, |b| {
            b.iter(|| classify(black_box(&words).iter().copied()))
        });
    }
    let get = redis::Cmd::get("key");
    group.bench_function("GET key, of a redis-rs command", |b| {
        b.iter(|| classify(arguments(black_box(&get))))
    });
    group.finish();

    let mget: Vec<&[u8]> = "MGET a b c d".split(' ').map(str::as_bytes).collect();
    c.bench_function("keys/MGET a b c d", |b| {
        b.iter(|| keys(black_box(&mget).iter().copied()))
    });
}

criterion_group!(benches, judge);
criterion_main!(benches);
