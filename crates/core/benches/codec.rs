//! What the protocol costs per command and per reply, beside redis-rs' own codec.
//!
//! `cargo bench -p steadfast-core --bench codec`

#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use steadfast_core::resp::{Decoder, encode};

fn encode(c: &mut Criterion) {
    let get = redis::Cmd::get("user:123456");
    let mut set = redis::cmd("SET");
    set.arg("user:123456")
        .arg(vec![b'x'; 64])
        .arg("EX")
        .arg(360);

    let mut group = c.benchmark_group("encode");
    let mut out = Vec::with_capacity(4_096);
    for (name, cmd) in [("GET", &get), ("SET of 64 bytes", &set)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                out.clear();
                encode::redis_cmd(black_box(cmd), &mut out);
                black_box(&out);
            });
        });
        group.bench_function(format!("{name}, redis-rs"), |b| {
            b.iter(|| {
                out.clear();
                black_box(cmd).write_packed_command(&mut out);
                black_box(&out);
            });
        });
    }
    group.finish();
}

fn decode(c: &mut Criterion) {
    let bulk = |n: usize| {
        [
            format!("${n}\r\n").into_bytes(),
            vec![b'x'; n],
            b"\r\n".to_vec(),
        ]
        .concat()
    };
    let array = |n: usize, item: &[u8]| [format!("*{n}\r\n").into_bytes(), item.repeat(n)].concat();
    let replies = [
        ("+OK", b"+OK\r\n".to_vec()),
        (":n", b":123456\r\n".to_vec()),
        ("$-1", b"$-1\r\n".to_vec()),
        ("$64", bulk(64)),
        ("$16384", bulk(16_384)),
        ("*100 of $16", array(100, &bulk(16))),
        (
            "%10 of $8",
            [b"%10\r\n".to_vec(), bulk(8).repeat(20)].concat(),
        ),
        (
            ">3 message",
            [b">3\r\n$7\r\nmessage\r\n".to_vec(), bulk(7), bulk(64)].concat(),
        ),
        (
            "-LOADING",
            b"-LOADING Redis is loading the dataset in memory\r\n".to_vec(),
        ),
    ];
    let mut group = c.benchmark_group("decode");
    for (name, reply) in &replies {
        group.throughput(Throughput::Bytes(reply.len() as u64));
        let mut decoder = Decoder::default();
        group.bench_function(*name, |b| {
            b.iter(|| decoder.decode(black_box(reply)).unwrap())
        });
        if *name == "$64" || *name == "*100 of $16" {
            group.bench_function(format!("{name}, redis-rs"), |b| {
                b.iter(|| redis::parse_redis_value(black_box(reply)).unwrap());
            });
        }
    }

    // A read buffer as a busy connection sees it: many replies, and the last one cut.
    let wave = bulk(64).repeat(16);
    let cut = &wave[..wave.len() - 20];
    group.throughput(Throughput::Elements(16));
    let mut decoder = Decoder::default();
    group.bench_function("wave of 16 × $64, the last in two parts", |b| {
        b.iter(|| {
            let mut done = 0;
            for end in [cut.len(), wave.len()] {
                loop {
                    let decoded = decoder.decode(black_box(&wave[done..end])).unwrap();
                    done += decoded.consumed;
                    if black_box(decoded.value).is_none() {
                        break;
                    }
                }
            }
        });
    });
    group.finish();
}

criterion_group!(benches, encode, decode);
criterion_main!(benches);
