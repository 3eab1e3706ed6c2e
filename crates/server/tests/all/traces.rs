use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use steadfast_server::config::{SAMPLE, Sources};
use steadfast_server::{Config, telemetry};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::harness::{PATIENCE, Service};

/// Takes whatever is posted to it, as a collector of traces does: an answer says that all of it is
/// there.
async fn collector() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let taken = Arc::new(Mutex::new(Vec::new()));
    let keep = taken.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let keep = keep.clone();
            tokio::spawn(async move { take(stream, &keep).await });
        }
    });
    (url, taken)
}

/// Keeps each request of a connection once it is whole, and answers it then.
async fn take(stream: TcpStream, keep: &Mutex<Vec<u8>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim().to_lowercase();
            if let Some(given) = line.strip_prefix("content-length:") {
                length = given.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        keep.lock().extend(body);
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await?;
        stream.flush().await?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_a_trace_goes_on_through_the_service_and_reaches_the_collector() {
    let (url, taken) = collector().await;
    let sources = Sources::new()
        .text("sample", SAMPLE)
        .flag("test", "log.level", "error")
        .flag("test", "tracing.endpoint", url)
        .flag("test", "tracing.service_name", "traced-service");
    let telemetry = telemetry::init(&Config::load(&sources).unwrap()).unwrap();
    let service = Service::demo().await;
    let trace: [u8; 16] = *b"0123456789abcdef";
    let hex: String = trace.iter().map(|byte| format!("{byte:02x}")).collect();
    let parent = format!("00-{hex}-00f067aa0ba902b7-01");
    let reply = service
        .get_with(
            "/v1/queries/search_users?q=secret-word",
            &[("traceparent", &parent)],
        )
        .await;
    assert_eq!(reply.status, 200);
    // As the program ends. SQLite's thread lets go of the span of a question when it has put it
    // away, which may be after the answer.
    service.app.close().await;
    tokio::task::spawn_blocking(move || telemetry.shutdown())
        .await
        .unwrap();

    let holds = |wanted: &[u8]| {
        let taken = taken.lock();
        taken.windows(wanted.len()).any(|window| window == wanted)
    };
    // Where the answer came from, and the question to the database that it took, within the same
    // trace.
    let wanted: [&[u8]; 6] = [
        &trace,
        b"GET /v1/queries/{name}",
        b"traced-service",
        b"steadfast.source",
        b"SELECT search_users",
        b"db.system.name",
    ];
    let missing = || wanted.iter().filter(|wanted| !holds(wanted));
    let arrived = async {
        while missing().next().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, arrived).await.is_err() {
        let missing = missing().map(|wanted| String::from_utf8_lossy(wanted));
        panic!("never came: {:?}", missing.collect::<Vec<_>>());
    }
    let spans = {
        let taken = taken.lock();
        taken.windows(trace.len()).filter(|id| *id == trace).count()
    };
    assert!(spans >= 2, "{spans}");
    assert!(
        !holds(b"secret-word"),
        "what a caller looked for is not traced"
    );
}
