use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value as Json;
use steadfast_drill::waiting::eventually;

use crate::harness::{PATIENCE, Service};

struct Stream {
    body: Incoming,
    held: String,
}

#[derive(Debug)]
struct Event {
    id: String,
    name: String,
    data: Json,
}

impl Stream {
    async fn open(service: &Service, last: Option<&str>) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut request = Request::get(service.url("/v1/events"));
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = client
            .request(request.body(Full::<bytes::Bytes>::default()).unwrap())
            .await
            .unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.into_body(),
            held: String::new(),
        }
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((frame, rest)) = self.held.split_once("\n\n") {
                let frame = frame.to_owned();
                self.held = rest.to_owned();
                if frame.starts_with(':') {
                    continue;
                }
                let field = |name: &str| {
                    let line = frame.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_default().to_owned()
                };
                return Some(Event {
                    id: field("id: "),
                    name: field("event: "),
                    data: serde_json::from_str(&field("data: ")).unwrap(),
                });
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame())
                .await
                .unwrap()?;
            let bytes = frame.unwrap().into_data().unwrap();
            self.held.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }

    async fn until(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        loop {
            let event = self.next().await.expect("the stream ended");
            if wanted(&event) {
                return event;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_events_are_streamed_live_and_resumed_without_a_gap() {
    let service = Service::demo().await;
    let mut stream = Stream::open(&service, None).await;
    let connected = stream
        .until(|event| event.data["event"] == "connected")
        .await;
    assert_eq!(connected.name, "connection");
    for _ in 0..20 {
        service.get("/v1/queries/search_users?q=turing").await;
    }
    let tick = stream
        .until(|event| event.name == "tick" && event.data["reads"]["memory"].as_u64() > Some(0))
        .await;
    assert!(tick.data["p99_ms"].as_f64().unwrap() > 0.0, "{tick:?}");
    assert_eq!(tick.data["redis"], "ready");
    let status = service.get("/v1/status").await.json();
    let hit = status["rates"]["hit"].as_f64().unwrap();
    assert!((0.5..1.0).contains(&hit), "19 of 20 at most: {status}");
    assert_eq!(status["rates"]["error"], 0.0);
    assert!(
        status["redis"]["success_rate"].as_f64() > Some(0.5),
        "{status}"
    );

    drop(stream);
    service.app.client().reconnect();
    let mut again = Stream::open(&service, Some(&tick.id)).await;
    let seq = |id: &str| id.rsplit_once('-').unwrap().1.parse::<u64>().unwrap();
    let mut expected = seq(&tick.id);
    let mut seen = Vec::new();
    while !seen.iter().any(|name| name == "connected") {
        let event = again.next().await.unwrap();
        expected += 1;
        assert_eq!(
            seq(&event.id),
            expected,
            "nothing is missed and nothing comes twice"
        );
        seen.push(event.data["event"].as_str().unwrap_or("tick").to_owned());
    }

    let history = service.get("/v1/history").await.json();
    let names: Vec<&str> = history["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert!(names.starts_with(&["started"]), "{names:?}");
    assert!(
        names.iter().filter(|name| **name == "connected").count() >= 2,
        "{names:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s5_a_thousand_subscribers_are_told_in_time_though_some_read_nothing() {
    let service = Service::demo().await;
    let mut deaf = Vec::new();
    let mut listening = Vec::new();
    for n in 0..1000 {
        let stream = Stream::open(&service, None).await;
        if n % 100 == 0 {
            deaf.push(stream)
        } else {
            listening.push(stream)
        }
    }
    service.get("/v1/queries/user_by_id?id=1").await;
    let readers: Vec<_> = listening
        .into_iter()
        .map(|mut stream| {
            tokio::spawn(async move {
                stream
                    .until(|event| event.name == "tick" && event.data["subscribers"] == 1000)
                    .await;
            })
        })
        .collect();
    let all = futures_util::future::join_all(readers);
    for told in tokio::time::timeout(Duration::from_secs(60), all)
        .await
        .unwrap()
    {
        told.unwrap();
    }
    // Those who left are forgotten; those who read nothing are not waited for.
    eventually("those who left are forgotten", async || {
        let status = service.get("/v1/status").await.json();
        status["service"]["subscribers"] == 10
    })
    .await;
    drop(deaf);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s9_event_streams_end_when_the_service_does() {
    let service = Service::demo().await;
    let mut stream = Stream::open(&service, None).await;
    stream.next().await.unwrap();
    service.shutdown.begin();
    while stream.next().await.is_some() {}
    let served = tokio::time::timeout(PATIENCE, service.serving)
        .await
        .unwrap();
    assert_eq!(served.unwrap(), steadfast_server::Served::Drained);
}
