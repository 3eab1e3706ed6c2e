//! What the proxy costs while nothing is broken: a round trip, and a pipeline, direct and through
//! it.
//!
//! It stands between every measurement of a drill and its server, so it must not be what is
//! measured: less than 100 µs more per round trip in the middle, and 200 000 pipelined calls a
//! second.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use steadfast_drill::process::Redis;
use steadfast_drill::proxy::Proxy;

const CALLS: usize = 1_000;
const VALUE: &[u8] = &[b'v'; 64];

fn proxy(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
    let redis = runtime
        .block_on(Redis::start())
        .expect("redis-server starts");
    let value = std::str::from_utf8(VALUE).expect("the value is text");
    redis
        .command_blocking(&["SET", "k", value])
        .expect("redis answers");
    let plain = runtime
        .block_on(Proxy::start(redis.addr()))
        .expect("the proxy starts");
    let resp = runtime
        .block_on(Proxy::builder().resp(true).start(redis.addr()))
        .expect("the proxy starts");
    let ways = [
        ("direct", redis.addr()),
        ("proxy", plain.addr()),
        ("proxy that follows RESP", resp.addr()),
    ];

    let mut group = criterion.benchmark_group("round trip");
    for (way, addr) in ways {
        let mut client = Client::connect(addr);
        group.bench_function(BenchmarkId::from_parameter(way), |bencher| {
            bencher.iter(|| client.ask(1))
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(CALLS as u64));
    for (way, addr) in ways {
        let mut client = Client::connect(addr);
        group.bench_function(BenchmarkId::from_parameter(way), |bencher| {
            bencher.iter(|| client.ask(CALLS))
        });
    }
    group.finish();
}

/// A client that does nothing but write commands and count the bytes of the answers.
struct Client {
    stream: TcpStream,
    commands: Vec<u8>,
    answers: Vec<u8>,
}

impl Client {
    fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).expect("the server accepts");
        stream.set_nodelay(true).expect("the socket is open");
        let commands = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n".repeat(CALLS);
        let answer = b"$64\r\n".len() + VALUE.len() + b"\r\n".len();
        Self {
            stream,
            commands,
            answers: vec![0; answer * CALLS],
        }
    }

    fn ask(&mut self, calls: usize) {
        let (commands, answers) = (
            self.commands.len() / CALLS * calls,
            self.answers.len() / CALLS * calls,
        );
        self.stream
            .write_all(&self.commands[..commands])
            .expect("the server reads");
        self.stream
            .read_exact(&mut self.answers[..answers])
            .expect("the server answers");
    }
}

criterion_group!(benches, proxy);
criterion_main!(benches);
