//! Each fault of the wire, seen from both ends of real connections.

use futures_util::FutureExt;
use std::io::ErrorKind;
use std::pin::pin;
use std::time::Duration;
use steadfast_drill::fault::{
    Bandwidth, Corrupt, Direction, Down, Hold, Latency, LimitData, RejectNext, ResetPeer, Slicer,
    SlowClose, Stall, Timeout, Toxic,
};
use steadfast_drill::proxy::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

/// Longer than anything here takes.
const LIMIT: Duration = Duration::from_secs(20);
/// Long enough for bytes that do come to have come.
const WHILE: Duration = Duration::from_millis(150);

/// A listener and a proxy in front of it.
struct Wire {
    listener: TcpListener,
    proxy: Proxy,
}

impl Wire {
    async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::start(listener.local_addr().unwrap()).await.unwrap();
        Self { listener, proxy }
    }

    /// A connection through the proxy: the client's end, the server's end.
    async fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.proxy.addr()).await.unwrap();
        let (server, _) = timeout(LIMIT, self.listener.accept())
            .await
            .unwrap()
            .unwrap();
        (client, server)
    }
}

async fn sends(from: &mut TcpStream, to: &mut TcpStream, text: &str) {
    from.write_all(text.as_bytes()).await.unwrap();
    arrives(to, text).await;
}

async fn arrives(to: &mut TcpStream, text: &str) {
    let mut read = vec![0; text.len()];
    timeout(LIMIT, to.read_exact(&mut read))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&read), text);
}

/// Neither bytes nor an end.
async fn hears_nothing(stream: &mut TcpStream) {
    let heard = timeout(WHILE, stream.read(&mut [0; 64])).await;
    assert!(heard.is_err(), "heard {heard:?}");
}

async fn ends(stream: &mut TcpStream) {
    assert_eq!(
        timeout(LIMIT, stream.read(&mut [0; 1]))
            .await
            .unwrap()
            .unwrap(),
        0
    );
}

async fn is_reset(stream: &mut TcpStream) {
    let error = timeout(LIMIT, stream.read(&mut [0; 1]))
        .await
        .unwrap()
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn d1_without_faults_bytes_and_ends_pass_both_ways() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.connect().await;
    sends(&mut client, &mut server, "ping").await;
    sends(&mut server, &mut client, "pong").await;
    client.shutdown().await.unwrap();
    ends(&mut server).await;
    sends(&mut server, &mut client, "still").await;
    drop(server);
    ends(&mut client).await;

    let (client, mut server) = wire.connect().await;
    client.set_zero_linger().unwrap();
    drop(client);
    is_reset(&mut server).await;
    let counters = wire.proxy.counters();
    assert_eq!(
        (counters.accepted, counters.bytes_up, counters.bytes_down),
        (2, 4, 9)
    );
}

#[tokio::test]
async fn d1_megabytes_pass_unchanged_through_every_harmless_fault() {
    let wire = Wire::new().await;
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n ^ (n >> 8)) as u8).collect();
    for toxics in [
        vec![],
        vec![Toxic::new(Latency::of_millis(5)).upstream()],
        vec![
            Toxic::new(Slicer {
                average_size: 3_000,
                size_variation: 2_000,
                delay: Duration::ZERO,
            })
            .upstream(),
            Toxic::new(Latency {
                latency: Duration::from_millis(3),
                jitter: Duration::from_millis(3),
            })
            .upstream(),
            Toxic::new(Bandwidth { rate: 50_000 }).upstream(),
        ],
    ] {
        for toxic in toxics {
            wire.proxy.add(toxic).await.unwrap();
        }
        let (mut client, mut server) = wire.connect().await;
        let writer = sent.clone();
        let writing = tokio::spawn(async move {
            client.write_all(&writer).await.unwrap();
            client.shutdown().await.unwrap();
            client
        });
        let mut read = Vec::new();
        timeout(LIMIT, server.read_to_end(&mut read))
            .await
            .unwrap()
            .unwrap();
        assert!(read == sent);
        writing.await.unwrap();
    }
}

#[tokio::test]
async fn d1_latency_delays_one_direction_and_its_removal_lets_all_go() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.connect().await;
    let latency = Duration::from_millis(120);
    let id = wire
        .proxy
        .add(Toxic::new(Latency {
            latency,
            jitter: Duration::ZERO,
        }))
        .await
        .unwrap();
    let start = Instant::now();
    sends(&mut server, &mut client, "late").await;
    assert!(start.elapsed() >= latency);

    wire.proxy.remove(id).await;
    wire.proxy
        .add(Toxic::new(Latency::of_millis(600_000)))
        .await
        .unwrap();
    server.write_all(b"much later").await.unwrap();
    hears_nothing(&mut client).await;
    sends(&mut client, &mut server, "at once").await;
    wire.proxy.clear().await;
    arrives(&mut client, "much later").await;
}

#[tokio::test]
async fn d1_bandwidth_passes_its_rate_and_no_more() {
    let wire = Wire::new().await;
    wire.proxy
        .add(Toxic::new(Bandwidth { rate: 500 }).upstream())
        .await
        .unwrap();
    let (mut client, mut server) = wire.connect().await;
    let start = Instant::now();
    client.write_all(&[7; 150_000]).await.unwrap();
    timeout(LIMIT, server.read_exact(&mut [0; 150_000]))
        .await
        .unwrap()
        .unwrap();
    let took = start.elapsed();
    assert!(
        (Duration::from_millis(295)..Duration::from_secs(5)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test]
async fn d1_slow_close_delays_the_end_and_not_the_bytes() {
    let wire = Wire::new().await;
    let delay = Duration::from_millis(250);
    wire.proxy
        .add(Toxic::new(SlowClose { delay }))
        .await
        .unwrap();
    let (mut client, mut server) = wire.connect().await;
    sends(&mut server, &mut client, "bye").await;
    let start = Instant::now();
    drop(server);
    ends(&mut client).await;
    assert!(start.elapsed() >= delay);
}

#[tokio::test]
async fn d1_timeout_is_a_black_hole_without_fin() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.connect().await;
    wire.proxy
        .add(
            Toxic::new(Timeout {
                timeout: Duration::ZERO,
            })
            .both(),
        )
        .await
        .unwrap();
    client.write_all(b"anybody?").await.unwrap();
    hears_nothing(&mut server).await;
    server.write_all(b"nobody").await.unwrap();
    hears_nothing(&mut client).await;
    client.shutdown().await.unwrap();
    hears_nothing(&mut server).await;
    drop(client);
    hears_nothing(&mut server).await;

    // New connections are accepted, and as dead.
    let (mut client, mut server) = wire.connect().await;
    client.write_all(b"anybody?").await.unwrap();
    hears_nothing(&mut server).await;
    wire.proxy.clear().await;
    ends(&mut client).await;
    ends(&mut server).await;
}

#[tokio::test]
async fn d1_timeout_closes_the_connection_when_its_time_is_over() {
    let wire = Wire::new().await;
    let limit = Duration::from_millis(150);
    wire.proxy
        .add(Toxic::new(Timeout { timeout: limit }))
        .await
        .unwrap();
    let start = Instant::now();
    let (mut client, mut server) = wire.connect().await;
    ends(&mut client).await;
    ends(&mut server).await;
    assert!(start.elapsed() >= limit);
}

#[tokio::test]
async fn d1_a_stall_stops_one_direction_only_and_loses_nothing() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.connect().await;
    let id = wire.proxy.add(Toxic::new(Stall {})).await.unwrap();
    sends(&mut client, &mut server, "question").await;
    server.write_all(b"answer").await.unwrap();
    hears_nothing(&mut client).await;
    sends(&mut client, &mut server, "again").await;
    drop(server);
    hears_nothing(&mut client).await;
    assert!(wire.proxy.remove(id).await);
    assert!(!wire.proxy.remove(id).await);
    arrives(&mut client, "answer").await;
    ends(&mut client).await;
}

#[tokio::test]
async fn d1_a_reset_is_seen_as_a_reset_at_both_ends() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.connect().await;
    let id = wire
        .proxy
        .add(Toxic::new(ResetPeer {
            timeout: Duration::ZERO,
        }))
        .await
        .unwrap();
    is_reset(&mut client).await;
    is_reset(&mut server).await;
    wire.proxy.remove(id).await;

    let delay = Duration::from_millis(100);
    wire.proxy
        .add(Toxic::new(ResetPeer { timeout: delay }))
        .await
        .unwrap();
    let start = Instant::now();
    let (mut client, _server) = wire.connect().await;
    is_reset(&mut client).await;
    assert!(start.elapsed() >= delay);
}

#[tokio::test]
async fn d1_a_slicer_sends_small_pieces_apart() {
    let wire = Wire::new().await;
    let slicer = Slicer {
        average_size: 4,
        size_variation: 1,
        delay: Duration::from_millis(100),
    };
    wire.proxy.add(Toxic::new(slicer)).await.unwrap();
    let (mut client, mut server) = wire.connect().await;
    let start = Instant::now();
    server.write_all(b"0123456789abcdefghij").await.unwrap();
    let (mut read, mut pieces) = (Vec::new(), 0);
    while read.len() < 20 {
        let mut piece = [0; 20];
        let length = timeout(LIMIT, client.read(&mut piece))
            .await
            .unwrap()
            .unwrap();
        read.extend_from_slice(&piece[..length]);
        pieces += 1;
    }
    assert_eq!(read, b"0123456789abcdefghij");
    // Late reads may find two pieces at once, but not all of them.
    assert!((2..=7).contains(&pieces), "{pieces}");
    assert!(start.elapsed() >= Duration::from_millis(300));
}

#[tokio::test]
async fn d1_limit_data_ends_the_connection_after_exactly_so_many_bytes() {
    let wire = Wire::new().await;
    wire.proxy
        .add(Toxic::new(LimitData { bytes: 10 }))
        .await
        .unwrap();
    let (mut client, mut server) = wire.connect().await;
    server.write_all(b"0123456").await.unwrap();
    server.write_all(b"789abc").await.unwrap();
    let mut read = Vec::new();
    timeout(LIMIT, client.read_to_end(&mut read))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read, b"0123456789");
    ends(&mut server).await;
}

#[tokio::test]
async fn d1_down_refuses_new_connections_and_closes_the_old() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.connect().await;
    let id = wire.proxy.add(Toxic::new(Down {})).await.unwrap();
    ends(&mut client).await;
    ends(&mut server).await;
    let refused = TcpStream::connect(wire.proxy.addr()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    wire.proxy.remove(id).await;
    let (mut client, mut server) = wire.connect().await;
    sends(&mut client, &mut server, "back").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d1_whoever_asks_right_after_a_change_finds_it_in_force() {
    // No server: each connection is accepted, and reset.
    let proxy = Proxy::start("127.0.0.1:1".parse().unwrap()).await.unwrap();
    // Not by the runtime, whose way to a connection is longer.
    let connect = || std::net::TcpStream::connect(proxy.addr());
    for round in 0..500 {
        let id = proxy.add(Toxic::new(Down {})).await.unwrap();
        assert!(connect().is_err(), "it is down, at round {round}");
        proxy.remove(id).await;
        let connected = connect();
        assert!(connected.is_ok(), "at round {round}: {connected:?}");
    }
}

#[tokio::test]
async fn d1_a_change_right_after_another_is_not_followed_before_that_is() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.connect().await;
    sends(&mut client, &mut server, "ping").await;
    // Nobody follows the plan between the two, as nobody else runs between them.
    let mut first = pin!(wire.proxy.add(Toxic::new(Latency::of_millis(1)).upstream()));
    let mut second = pin!(wire.proxy.add(Toxic::new(Stall {})));
    assert!(first.as_mut().now_or_never().is_none());
    assert!(second.as_mut().now_or_never().is_none());
    timeout(LIMIT, second).await.unwrap().unwrap();
    timeout(LIMIT, first).await.unwrap().unwrap();
    server.write_all(b"stalled").await.unwrap();
    hears_nothing(&mut client).await;
}

#[tokio::test]
async fn d1_a_removal_is_followed_though_the_change_before_it_was_given_up() {
    for clears in [false, true] {
        let wire = Wire::new().await;
        let (mut client, mut server) = wire.connect().await;
        sends(&mut client, &mut server, "ping").await;
        let stall = wire.proxy.add(Toxic::new(Stall {})).await.unwrap();
        let given_up = wire.proxy.add(Toxic::new(Hold {}).upstream());
        assert!(given_up.now_or_never().is_none());
        let removal = async {
            if clears {
                wire.proxy.clear().await;
                true
            } else {
                wire.proxy.remove(stall).await
            }
        };
        let mut removal = pin!(removal);
        assert!(removal.as_mut().now_or_never().is_none());
        assert!(timeout(LIMIT, removal).await.unwrap());
        sends(&mut server, &mut client, "pong").await;
    }
}

#[tokio::test]
async fn d1_a_removal_tells_of_itself_whatever_changes_beside_it() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.connect().await;
    sends(&mut client, &mut server, "ping").await;
    let id = wire.proxy.add(Toxic::new(Stall {})).await.unwrap();
    let both = async { tokio::join!(wire.proxy.remove(id), wire.proxy.remove(id)) };
    assert_eq!(timeout(LIMIT, both).await.unwrap(), (true, false));
    let add = || wire.proxy.add(Toxic::new(Stall {}));
    let beside = async { tokio::join!(wire.proxy.remove(id), add()) };
    let (removed, other) = timeout(LIMIT, beside).await.unwrap();
    assert!(!removed);
    let beside = async { tokio::join!(wire.proxy.remove(other.unwrap()), add()) };
    assert!(timeout(LIMIT, beside).await.unwrap().0);
}

#[tokio::test]
async fn d1_what_was_held_waits_on_where_the_bandwidth_is_zero() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.connect().await;
    let hold = wire.proxy.add(Toxic::new(Hold {}).upstream()).await;
    client.write_all(b"held").await.unwrap();
    while wire.proxy.counters().bytes_up < 4 {
        tokio::task::yield_now().await;
    }
    let none = Toxic::new(Bandwidth { rate: 0 }).upstream();
    let none = wire.proxy.add(none).await.unwrap();
    assert!(wire.proxy.remove(hold.unwrap()).await);
    hears_nothing(&mut server).await;
    assert!(wire.proxy.remove(none).await);
    arrives(&mut server, "held").await;
    sends(&mut server, &mut client, "answer").await;
}

#[tokio::test]
async fn d1_a_fault_that_acts_on_nothing_has_touched_nothing() {
    let wire = Wire::new().await;
    let touched = async |toxic: Toxic, text: &str| {
        let id = wire.proxy.add(toxic).await.unwrap();
        let (mut client, mut server) = wire.connect().await;
        server.write_all(text.as_bytes()).await.unwrap();
        let _ = timeout(WHILE, client.read(&mut [0; 64])).await;
        let touched = wire.proxy.touched(id).unwrap();
        wire.proxy.remove(id).await;
        touched
    };
    let limit = || Toxic::new(LimitData { bytes: 4 });
    assert_eq!(touched(limit(), "123").await, 0);
    assert_eq!(touched(limit(), "1234").await, 1);
    let corrupt = |share| Toxic::new(Corrupt { share });
    assert_eq!(touched(corrupt(0.0), "123").await, 0);
    assert_eq!(touched(corrupt(1.0), "123").await, 1);
    assert_eq!(touched(Toxic::new(Stall {}).toxicity(0.0), "123").await, 0);
    // Perhaps also a connection of before, which is just ending.
    assert!(touched(Toxic::new(Stall {}), "123").await >= 1);
}

#[tokio::test]
async fn d1_corrupt_changes_bytes_and_their_number_not() {
    let wire = Wire::new().await;
    wire.proxy
        .add(Toxic::new(Corrupt { share: 1.0 }))
        .await
        .unwrap();
    let (mut client, mut server) = wire.connect().await;
    sends(&mut client, &mut server, "clean").await;
    server.write_all(b"+PONG\r\n").await.unwrap();
    let mut read = [0; 7];
    timeout(LIMIT, client.read_exact(&mut read))
        .await
        .unwrap()
        .unwrap();
    let differing = read
        .iter()
        .zip(b"+PONG\r\n")
        .filter(|(is, was)| is != was)
        .count();
    assert!((1..=7).contains(&differing));
}

#[tokio::test]
async fn d1_the_next_connections_are_rejected_and_those_after_them_pass() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.connect().await;
    wire.proxy
        .add(Toxic::new(RejectNext { n: 2 }))
        .await
        .unwrap();
    for _ in 0..2 {
        is_reset(&mut TcpStream::connect(wire.proxy.addr()).await.unwrap()).await;
    }
    sends(&mut client, &mut server, "old").await;
    let (mut client, mut server) = wire.connect().await;
    sends(&mut client, &mut server, "new").await;
    assert_eq!(wire.proxy.counters().rejected, 2);
}

#[tokio::test]
async fn d1_held_bytes_reach_the_server_after_their_sender_is_gone() {
    for reset in [false, true] {
        let wire = Wire::new().await;
        let (mut client, mut server) = wire.connect().await;
        sends(&mut client, &mut server, "before").await;
        wire.proxy
            .add(Toxic::new(Hold {}).upstream())
            .await
            .unwrap();
        client.write_all(b"INCR n").await.unwrap();
        while wire.proxy.counters().bytes_up < 12 {
            tokio::task::yield_now().await;
        }
        if reset {
            client.set_zero_linger().unwrap();
        }
        drop(client);
        hears_nothing(&mut server).await;
        wire.proxy.clear().await;
        arrives(&mut server, "INCR n").await;
        ends(&mut server).await;
    }
}

#[tokio::test]
async fn d1_a_toxicity_of_a_half_takes_about_half_of_the_connections_and_the_same_by_the_same_seed()
{
    let mut outcomes = Vec::new();
    for _ in 0..2 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Proxy::builder()
            .seed(42)
            .start(listener.local_addr().unwrap())
            .await
            .unwrap();
        proxy
            .add(Toxic::new(LimitData { bytes: 0 }).toxicity(0.5))
            .await
            .unwrap();
        let mut taken = Vec::new();
        for _ in 0..60 {
            let mut client = TcpStream::connect(proxy.addr()).await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            server.write_all(b"x").await.unwrap();
            taken.push(
                timeout(LIMIT, client.read(&mut [0; 1]))
                    .await
                    .unwrap()
                    .unwrap()
                    == 0,
            );
        }
        outcomes.push(taken);
    }
    let half = outcomes[0].iter().filter(|taken| **taken).count();
    assert!((15..=45).contains(&half), "{half}");
    assert_eq!(outcomes[0], outcomes[1]);
}

#[tokio::test]
async fn d1_faults_follow_each_other_on_one_connection() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.connect().await;
    for _ in 0..20 {
        for toxic in [
            Toxic::new(Stall {}).both(),
            Toxic::new(Latency::of_millis(60_000)).direction(Direction::Both),
            Toxic::new(Hold {}).both(),
        ] {
            let id = wire.proxy.add(toxic).await.unwrap();
            client.write_all(b"there").await.unwrap();
            server.write_all(b"back").await.unwrap();
            wire.proxy.remove(id).await;
            arrives(&mut server, "there").await;
            arrives(&mut client, "back").await;
        }
    }
}

#[tokio::test]
async fn d1_a_server_that_is_not_there_is_a_reset_behind_the_proxy() {
    let wire = Wire::new().await;
    drop(wire.listener);
    is_reset(&mut TcpStream::connect(wire.proxy.addr()).await.unwrap()).await;
    assert_eq!(wire.proxy.counters().unreachable, 1);
}

#[tokio::test]
async fn d6_a_dropped_proxy_leaves_no_connection_and_no_listener() {
    let wire = Wire::new().await;
    let (mut client, mut server) = wire.connect().await;
    let addr = wire.proxy.addr();
    let taken = Proxy::builder().listen(addr).start(addr).await.unwrap_err();
    assert_eq!(
        taken.to_string(),
        format!("{addr} is taken; choose another port, or 0 to have a free one found")
    );
    drop(wire.proxy);
    ends(&mut client).await;
    ends(&mut server).await;
    let again = async {
        while Proxy::builder().listen(addr).start(addr).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, again).await.unwrap();
}
