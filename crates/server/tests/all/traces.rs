use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use steadfast_server::config::{SAMPLE, Sources};
use steadfast_server::{Config, telemetry};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::{PATIENCE, Service};

/// Takes whatever is posted to it, as a collector of traces does.
async fn collector() -> (String, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let taken = Arc::new(Mutex::new(Vec::new()));
    let keep = taken.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let keep = keep.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 64 << 10];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    keep.lock().extend_from_slice(&buffer[..read]);
                    // Whole or not, an answer ends the exchange: what was sent is what is looked at.
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                        .await;
                }
            });
        }
    });
    (url, taken)
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
    tokio::task::spawn_blocking(move || telemetry.shutdown())
        .await
        .unwrap();

    let holds = |wanted: &[u8]| {
        let taken = taken.lock();
        taken.windows(wanted.len()).any(|window| window == wanted)
    };
    let arrived = async {
        while !holds(&trace) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, arrived).await.unwrap();
    assert!(holds(b"GET /v1/queries/{name}"));
    assert!(holds(b"traced-service"));
    let spans = {
        let taken = taken.lock();
        taken.windows(trace.len()).filter(|id| *id == trace).count()
    };
    assert!(spans >= 2, "{spans}");
    // Where the answer came from, and the question to the database that it took, within the same trace.
    assert!(holds(b"steadfast.source"));
    assert!(holds(b"SELECT search_users") && holds(b"db.system.name"));
    assert!(
        !holds(b"secret-word"),
        "what a caller looked for is not traced"
    );
}
