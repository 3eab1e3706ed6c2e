//! Answers that are long, and callers that read them slowly or not at all.

use std::time::Duration;

use steadfast_server::Served;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{PATIENCE, Service};

/// More than all the buffers on the way can hold.
const LONG: usize = 16 << 20;

async fn service(settings: &[(&str, &str)]) -> Service {
    let sql = format!("SELECT printf('%.*c', {LONG}, 'x') AS t");
    let mut all = vec![
        ("redis.url", "redis://127.0.0.1:1"),
        ("server.drain_delay", "50ms"),
        ("queries.long.sql", sql.as_str()),
    ];
    all.extend_from_slice(settings);
    Service::with(&all).await
}

/// A caller whose own side takes in next to nothing before it reads.
async fn ask(service: &Service, path: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(service.addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut first = [0; 15];
    let read = tokio::time::timeout(PATIENCE, stream.read_exact(&mut first)).await;
    read.unwrap().unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_an_answer_that_is_read_slowly_is_waited_for_to_its_last_byte() {
    let service = service(&[]).await;
    let mut slow = Vec::new();
    for _ in 0..3 {
        slow.push(ask(&service, "/v1/queries/long").await);
    }
    assert!(service.status()["service"]["in_flight"].as_u64() >= Some(3));
    service.shutdown.begin();
    // Far longer than a service takes to end on which nobody asks anything.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!service.serving.is_finished(), "answers are under way");
    let reading: Vec<_> = slow
        .into_iter()
        .map(|mut stream| {
            tokio::spawn(async move {
                let mut rest = Vec::new();
                stream.read_to_end(&mut rest).await.unwrap();
                rest
            })
        })
        .collect();
    for reading in reading {
        let rest = tokio::time::timeout(PATIENCE * 3, reading)
            .await
            .unwrap()
            .unwrap();
        assert!(rest.len() > LONG, "broken off after {} bytes", rest.len());
        assert!(rest.ends_with(b"}"), "not the whole of it");
    }
    let served = tokio::time::timeout(PATIENCE, service.serving)
        .await
        .unwrap();
    assert_eq!(served.unwrap(), Served::Drained);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_an_answer_that_nobody_reads_is_waited_for_until_the_limit_and_counted() {
    let service = service(&[("server.drain_limit", "1s")]).await;
    let _never_read = ask(&service, "/v1/queries/long").await;
    // A stream of events is ended, not waited for.
    let mut events = ask(&service, "/v1/events").await;
    service.shutdown.begin();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, events.read_to_end(&mut rest)).await;
    ended.unwrap().unwrap();
    let served = tokio::time::timeout(PATIENCE, service.serving)
        .await
        .unwrap();
    assert_eq!(served.unwrap(), Served::Unfinished { requests: 1 });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_who_does_not_read_its_answer_is_let_go_and_holds_nothing() {
    let service = service(&[("limits.write_timeout", "1500ms")]).await;
    let mut answers = Vec::new();
    let mut streams = Vec::new();
    for _ in 0..3 {
        answers.push(ask(&service, "/v1/queries/long").await);
        streams.push(ask(&service, "/v1/events").await);
    }
    // Words for the streams, so that there is something that they do not read.
    let dropped = async {
        loop {
            service.get("/v1/queries/none").await;
            let status = service.status();
            if status["service"]["in_flight"] == 0 && status["service"]["subscribers"] == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let outcome = tokio::time::timeout(PATIENCE, dropped).await;
    assert!(outcome.is_ok(), "{}", service.status()["service"]);
    for mut stream in answers {
        let mut rest = Vec::new();
        let read = stream.read_to_end(&mut rest).await;
        assert!(read.is_err() && rest.len() < LONG, "{} bytes", rest.len());
    }
    // One that reads slowly but steadily is served: for longer than the limit it gets on by a few
    // kilobytes at a time.
    let mut patient = ask(&service, "/v1/queries/long").await;
    let mut read = 0;
    let mut buffer = vec![0; 1 << 20];
    while read < LONG {
        let n = patient.read(&mut buffer).await.unwrap();
        assert_ne!(n, 0, "broken off after {read} bytes");
        read += n;
        if read < 1_500_000 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
