//! The scripted server, and a schedule played on a real one.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use steadfast_drill::process::Redis;
use steadfast_drill::proxy::Proxy;
use steadfast_drill::schedule::{Bounds, Schedule};
use steadfast_drill::scripted::{Script, Server};

fn connect(server: &Server) -> TcpStream {
    let stream = TcpStream::connect(server.addr()).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    stream
}

fn ask(stream: &mut TcpStream, command: &str, length: usize) -> String {
    let args: Vec<_> = command.split(' ').collect();
    let bulks: String = args
        .iter()
        .map(|arg| format!("${}\r\n{arg}\r\n", arg.len()))
        .collect();
    stream
        .write_all(format!("*{}\r\n{bulks}", args.len()).as_bytes())
        .unwrap();
    let mut answer = vec![0; length];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    rest
}

#[tokio::test(flavor = "multi_thread")]
async fn d1_a_script_is_spoken_after_a_handshake_that_a_client_believes() {
    let server = Server::start(
        Script::new()
            .handshake()
            .read(1)
            .send("$10\r\nhalf")
            .close(),
    )
    .await
    .unwrap();
    let mut stream = connect(&server);
    assert!(ask(&mut stream, "HELLO 3", 100).starts_with("%7\r\n$6\r\nserver"));
    let mut stream = connect(&server);
    assert_eq!(ask(&mut stream, "AUTH pw", 5), "+OK\r\n");
    assert_eq!(ask(&mut stream, "CLIENT ID", 4), ":2\r\n");
    assert_eq!(ask(&mut stream, "GET k", 9), "$10\r\nhalf");
    assert_eq!(rest(&mut stream), b"");
    assert_eq!(server.connections(), 2);
    assert_eq!(
        server.commands().last().unwrap(),
        &[b"GET".to_vec(), b"k".to_vec()]
    );

    let url = server.url();
    let redis = redis::Client::open(url).unwrap();
    let mut connection = redis.get_connection().unwrap();
    assert!(
        redis::cmd("GET")
            .arg("k")
            .query::<String>(&mut connection)
            .unwrap_err()
            .is_io_error()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn d1_what_no_server_does_is_done_to_the_byte() {
    let server = Server::start(Script::max_clients()).await.unwrap();
    assert_eq!(
        rest(&mut connect(&server)),
        b"-ERR max number of clients reached\r\n"
    );

    let server = Server::start(Script::huge_length(1 << 40)).await.unwrap();
    assert_eq!(
        ask(&mut connect(&server), "GET k", 19),
        "$1099511627776\r\nabc"
    );

    let server = Server::start(Script::deep_nesting(1_000)).await.unwrap();
    assert_eq!(
        ask(&mut connect(&server), "GET k", 4_004),
        "*1\r\n".repeat(1_000) + ":1\r\n"
    );

    let garbage = |server: &Server| ask(&mut connect(server), "GET k", 4_096);
    let (one, same, other) = (Script::garbage(1), Script::garbage(1), Script::garbage(2));
    let mut heard = Vec::new();
    for script in [one, same, other] {
        heard.push(garbage(&Server::start(script).await.unwrap()));
    }
    assert_eq!(heard[0], heard[1]);
    assert_ne!(heard[0], heard[2]);

    let server = Server::start(Script::new().echo_reversed(2)).await.unwrap();
    let mut stream = connect(&server);
    stream
        .write_all(b"*2\r\n$4\r\nECHO\r\n$1\r\na\r\n")
        .unwrap();
    assert_eq!(ask(&mut stream, "ECHO b", 14), "$1\r\nb\r\n$1\r\na\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn d1_a_script_may_be_mute_endless_or_end_by_a_reset() {
    let server = Server::start(Script::new()).await.unwrap();
    let mut stream = connect(&server);
    stream
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    stream.write_all(b"PING\r\n").unwrap();
    assert_eq!(
        stream.read(&mut [0; 1]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );

    let server = Server::start(Script::endless_pushes()).await.unwrap();
    let pushes = ask(&mut connect(&server), "GET k", 5_000_000);
    assert!(pushes.starts_with(">2\r\n$10\r\ninvalidate\r\n"));

    let scripts = vec![
        Script::new().read_bytes(4).reset(),
        Script::new().read_bytes(4).close(),
    ];
    let server = Server::start_each(scripts).await.unwrap();
    let (mut first, mut second) = (connect(&server), connect(&server));
    first.write_all(b"1234").unwrap();
    assert_eq!(
        first.read(&mut [0; 1]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    second.write_all(b"1234").unwrap();
    assert_eq!(rest(&mut second), b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn d6_a_schedule_leaves_all_healed() {
    let redis = Redis::start().await.unwrap();
    let proxy = Proxy::builder()
        .seed(5)
        .resp(true)
        .start(redis.addr())
        .await
        .unwrap();
    let bounds = Bounds {
        length: Duration::from_millis(1_500),
        gap: Duration::ZERO..=Duration::from_millis(50),
        lasts: Duration::from_millis(10)..=Duration::from_millis(100),
        at_once: 3,
        ..Bounds::default()
    };
    let schedule = Schedule::draw(11, &bounds);
    assert!(schedule.entries.len() > 20);
    schedule.play(&proxy, &redis).await.unwrap();
    assert!(proxy.toxics().is_empty());
    let client = redis::Client::open(format!("redis://{}", proxy.addr())).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd("PING")
        .query_async::<()>(&mut connection)
        .await
        .unwrap();
}
