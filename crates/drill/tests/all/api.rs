//! Toxiproxy's HTTP API, asked by a published client of it and by hand.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use redis::AsyncCommands;
use serde_json::{Value, json};
use std::time::Duration;
use steadfast_drill::api::{Proxies, router, serve};
use steadfast_drill::process::Redis;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

async fn ask(router: &Router, method: &str, path: &str, body: Value) -> (StatusCode, Value) {
    let body = if body.is_null() {
        Body::empty()
    } else {
        Body::from(body.to_string())
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .body(body)
        .unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    (
        status,
        serde_json::from_slice(&bytes).unwrap_or(Value::Null),
    )
}

/// What the published client does, with a word after each step that the test looks for.
const PROGRAM: &str = r#"
import sys, time, redis
from toxiproxy import Toxiproxy
from toxiproxy.exceptions import ProxyExists, InvalidToxic
port, upstream = int(sys.argv[1]), sys.argv[2]
server = Toxiproxy()
server.update_api_consumer("127.0.0.1", port)
assert server.running() and b"2." in server.version()
proxy = server.create(name="redis", upstream=upstream)
host, at = proxy.listen.rsplit(":", 1)
def ping(**options):
    begun = time.monotonic()
    redis.Redis(host=host, port=int(at), retry=None, **options).ping()
    return time.monotonic() - begun
ping()
proxy.add_toxic(name="slow", type="latency", attributes={"latency": 300, "jitter": 0})
assert ping() >= 0.3
assert proxy.get_toxic("slow").attributes["latency"] == 300
proxy.destroy_toxic("slow")
proxy.add_toxic(type="timeout", attributes={"timeout": 0})
try:
    ping(socket_timeout=0.3)
    sys.exit("an answer came through a timeout toxic")
except (redis.TimeoutError, redis.ConnectionError):
    pass
proxy.destroy_toxic("timeout_downstream")
ping()
with proxy.down():
    try:
        ping()
        sys.exit("a disabled proxy took a connection")
    except redis.ConnectionError:
        pass
ping()
try:
    proxy.add_toxic(type="earthquake")
    sys.exit("an earthquake was taken")
except InvalidToxic:
    pass
assert proxy.toxics() == {}
proxy.add_toxic(type="resp_error", attributes={"error": "loading", "commands": ["PING"]})
try:
    ping()
    sys.exit("an error of Redis' protocol was not answered")
except redis.BusyLoadingError:
    pass
proxy.add_toxic(name="slow", type="latency", attributes={"latency": 300})
proxy.disable()
assert server.reset()
assert server.get_proxy("redis").enabled and proxy.toxics() == {}
assert ping() < 0.3
wanted = [{"name": "redis", "upstream": upstream, "listen": proxy.listen}, {"name": "other", "upstream": upstream, "listen": "127.0.0.1:0"}]
assert [made.name for made in server.populate(wanted)] == ["other"]
assert sorted(server.proxies()) == ["other", "redis"]
server.destroy_all()
assert server.proxies() == {}
print("all well")
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_a_published_toxiproxy_client_adds_latency_and_a_timeout_and_removes_them() {
    let redis = Redis::start().await.unwrap();
    let python = tokio::task::spawn_blocking(crate::targets::python)
        .await
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = tokio::spawn(serve(listener, Proxies::new(1)));
    let mut program = tokio::process::Command::new(python);
    program.args(["-c", PROGRAM, &port.to_string(), &redis.addr().to_string()]);
    let output = program.output().await.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serving.abort();
}

/// The same by another published client, which populates by one call. Prints a dot for each thing
/// that was as it should be.
const SCRIPT: &str = r#"
const { Toxiproxy } = require("toxiproxy-node-client");
const net = require("node:net");
const [, api, upstream] = process.argv;
const assert = require("node:assert");
const ping = ({ listen }) => new Promise((answered, failed) => {
  const [host, port] = listen.split(":"), begun = performance.now();
  const socket = net.connect(Number(port), host, () => socket.write("PING\r\n"));
  socket.setTimeout(2000, () => socket.destroy(new Error("no answer")));
  socket.once("data", data => { socket.destroy(); answered([String(data), performance.now() - begun]); });
  socket.once("error", failed);
  socket.once("close", () => failed(new Error("closed")));
});
(async () => {
  const server = new Toxiproxy(`http://${api}`);
  assert.match(await server.getVersion(), /2\./);
  const wanted = [{ name: "one", listen: "127.0.0.1:0", upstream }, { name: "two", listen: "127.0.0.1:0", upstream, enabled: false }];
  const { one, two } = await server.populate(wanted);
  assert.equal((await ping(one))[0], "+PONG\r\n");
  assert.equal(two.enabled, false);
  await assert.rejects(ping(two));
  const slow = await one.addToxic({ name: "slow", type: "latency", stream: "downstream", toxicity: 1, attributes: { latency: 300, jitter: 0 } });
  assert.ok((await ping(one))[1] >= 300);
  await slow.update({ attributes: { latency: 0 } });
  assert.equal((await one.getToxic("slow")).attributes.latency, 0);
  await slow.remove();
  await one.addToxic({ name: "gone", type: "timeout", stream: "downstream", toxicity: 1, attributes: { timeout: 100 } });
  await assert.rejects(ping(one), /closed/);
  await server.reset();
  assert.equal((await ping(one))[0], "+PONG\r\n");
  assert.equal((await server.get("two")).enabled, true);
  const { two: again } = await server.populate([wanted[1]]);
  assert.equal(again.listen, two.listen);
  await one.remove();
  assert.deepEqual(Object.keys(await server.getAll()), ["two"]);
  console.log("all well");
})().catch(error => { console.error(error); process.exit(1); });
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_another_published_toxiproxy_client_populates_and_resets() {
    let redis = Redis::start().await.unwrap();
    let folder = tokio::task::spawn_blocking(crate::targets::node)
        .await
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api = listener.local_addr().unwrap().to_string();
    let serving = tokio::spawn(serve(listener, Proxies::new(1)));
    let mut program = tokio::process::Command::new("node");
    program
        .current_dir(folder)
        .args(["-e", SCRIPT, "--", &api, &redis.addr().to_string()]);
    let output = program.output().await.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serving.abort();
}

#[tokio::test]
async fn d7_the_api_answers_with_toxiproxys_status_codes_and_error_bodies() {
    let redis = Redis::start().await.unwrap();
    let router = router(Proxies::new(1));
    let proxy =
        json!({ "name": "p", "listen": "localhost:0", "upstream": redis.addr().to_string() });
    let toxic = json!({ "type": "latency", "attributes": { "latency": 5 } });
    let steps = [
        (
            "POST",
            "/proxies",
            json!({ "name": "p" }),
            400,
            "missing required field: upstream",
        ),
        (
            "POST",
            "/proxies",
            json!({ "upstream": "x:1" }),
            400,
            "missing required field: name",
        ),
        ("POST", "/proxies", proxy.clone(), 201, ""),
        (
            "POST",
            "/proxies",
            proxy.clone(),
            409,
            "proxy already exists",
        ),
        ("GET", "/proxies/q", Value::Null, 404, "proxy not found"),
        (
            "POST",
            "/proxies/p/toxics",
            json!({ "type": "earthquake" }),
            400,
            "invalid toxic type",
        ),
        (
            "POST",
            "/proxies/p/toxics",
            json!({ "type": "latency", "stream": "sideways" }),
            400,
            "stream was invalid, can be either upstream or downstream",
        ),
        (
            "POST",
            "/proxies/p/toxics",
            json!({ "type": "slicer", "toxicity": 2 }),
            400,
            "toxicity is 2",
        ),
        (
            "POST",
            "/proxies/p/toxics",
            json!({ "type": "bandwidth" }),
            200,
            "",
        ),
        ("POST", "/proxies/p/toxics", toxic.clone(), 200, ""),
        (
            "POST",
            "/proxies/p/toxics",
            toxic,
            409,
            "toxic already exists",
        ),
        (
            "POST",
            "/proxies/p/toxics/latency_downstream",
            json!({ "attributes": { "jitter": 1 } }),
            200,
            "",
        ),
        (
            "GET",
            "/proxies/p/toxics/none",
            Value::Null,
            404,
            "toxic not found",
        ),
        (
            "DELETE",
            "/proxies/p/toxics/bandwidth_downstream",
            Value::Null,
            204,
            "",
        ),
        ("POST", "/proxies/p", json!({ "enabled": false }), 200, ""),
        ("POST", "/reset", Value::Null, 204, ""),
        (
            "POST",
            "/populate",
            json!([proxy, { "name": "r", "upstream": redis.addr().to_string(), "enabled": false }]),
            201,
            "",
        ),
        ("POST", "/populate", json!({}), 400, "bad request body"),
        ("DELETE", "/proxies/p", Value::Null, 204, ""),
        ("DELETE", "/proxies/p", Value::Null, 404, "proxy not found"),
        ("GET", "/nowhere", Value::Null, 404, "no such path"),
    ];
    for (method, path, body, status, says) in steps {
        let (code, answer) = ask(&router, method, path, body.clone()).await;
        assert_eq!(code.as_u16(), status, "{method} {path} {body}: {answer}");
        if status >= 400 {
            assert!(
                answer["error"].as_str().unwrap().contains(says),
                "{method} {path}: {answer}"
            );
            assert_eq!(answer["status"], status, "{answer}");
        }
        if path == "/proxies/p/toxics/latency_downstream" {
            assert_eq!(answer["attributes"], json!({ "latency": 5, "jitter": 1 }));
        }
    }
    let (_, left) = ask(&router, "GET", "/proxies", Value::Null).await;
    assert_eq!(left["r"]["enabled"], false);
    assert_eq!(left.as_object().unwrap().len(), 1);
}

#[tokio::test]
async fn d7_a_proxy_moves_to_another_upstream_on_its_own_port() {
    let (first, second) = tokio::join!(Redis::start(), Redis::start());
    let (first, second) = (first.unwrap(), second.unwrap());
    first.command(&["SET", "which", "first"]).await.unwrap();
    second.command(&["SET", "which", "second"]).await.unwrap();
    let router = router(Proxies::new(1));
    let (_, shown) = ask(
        &router,
        "POST",
        "/proxies",
        json!({ "name": "p", "upstream": first.addr().to_string() }),
    )
    .await;
    let listen = shown["listen"].as_str().unwrap().to_owned();
    let which = async || {
        let client = redis::Client::open(format!("redis://{listen}")).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        connection.get::<_, String>("which").await.unwrap()
    };
    assert_eq!(which().await, "first");
    let (status, shown) = ask(
        &router,
        "POST",
        "/proxies/p",
        json!({ "upstream": second.addr().to_string() }),
    )
    .await;
    assert_eq!(
        (status.as_u16(), shown["listen"].as_str()),
        (200, Some(listen.as_str())),
        "{shown}"
    );
    assert_eq!(which().await, "second");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_a_toxic_that_is_changed_goes_on_and_ends_no_connection() {
    let redis = Redis::start().await.unwrap();
    let router = router(Proxies::new(1));
    let wanted = json!({ "name": "p", "upstream": redis.addr().to_string() });
    let (_, shown) = ask(&router, "POST", "/proxies", wanted).await;
    let mut connection = tokio::net::TcpStream::connect(shown["listen"].as_str().unwrap())
        .await
        .unwrap();
    // What is silent for half a second may be slow; what is closed says so at once.
    let mut answer = async |asked: bool| {
        if asked {
            connection.write_all(b"PING\r\n").await.unwrap();
        }
        let mut bytes = [0; 64];
        let read = tokio::time::timeout(Duration::from_millis(500), connection.read(&mut bytes));
        match read.await {
            Err(_) => "silence".to_owned(),
            Ok(Ok(0) | Err(_)) => "closed".to_owned(),
            Ok(Ok(length)) => String::from_utf8_lossy(&bytes[..length]).into_owned(),
        }
    };
    assert_eq!(answer(true).await, "+PONG\r\n");
    for toxic in [
        json!({ "name": "t", "type": "timeout", "attributes": { "timeout": 0 } }),
        json!({ "name": "slow", "type": "latency", "attributes": { "latency": 1 } }),
    ] {
        let (status, said) = ask(&router, "POST", "/proxies/p/toxics", toxic).await;
        assert_eq!(status, StatusCode::OK, "{said}");
    }
    assert_eq!(answer(true).await, "silence");
    let longer = json!({ "attributes": { "timeout": 600_000 } });
    let (_, changed) = ask(&router, "PATCH", "/proxies/p/toxics/t", longer).await;
    assert_eq!(changed["attributes"]["timeout"], 600_000, "{changed}");
    assert_eq!(answer(true).await, "silence");
    let (_, toxics) = ask(&router, "GET", "/proxies/p/toxics", Value::Null).await;
    assert_eq!(toxics[0]["name"], "t", "it has kept its place: {toxics}");
    let (status, _) = ask(&router, "DELETE", "/proxies/p/toxics/t", Value::Null).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    assert_eq!(answer(false).await, "closed");
}

#[tokio::test]
async fn d7_browsers_are_turned_away() {
    for (name, value) in [
        ("user-agent", "Mozilla/5.0"),
        ("origin", "http://evil.example"),
    ] {
        let request = Request::builder()
            .uri("/proxies")
            .header(name, value)
            .body(Body::empty())
            .unwrap();
        let response = router(Proxies::new(1)).oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
    }
}

#[tokio::test]
async fn d7_an_upstream_is_resolved_for_each_connection_and_need_not_resolve_yet() {
    let redis = Redis::start().await.unwrap();
    let proxies = Proxies::new(1);
    let router = router(proxies.clone());
    let later = json!({ "name": "later", "upstream": "not-yet.invalid:6379" });
    let (status, shown) = ask(&router, "POST", "/proxies", later).await;
    assert_eq!(status, StatusCode::CREATED, "{shown}");
    assert_eq!(shown["upstream"], "not-yet.invalid:6379");
    let listen = shown["listen"].as_str().unwrap();
    let mut connection = tokio::net::TcpStream::connect(listen).await.unwrap();
    let read = connection.read(&mut [0; 8]).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    assert_eq!(proxies.counters("later").await.unwrap().unreachable, 1);
    for host in ["localhost", ""] {
        let upstream = json!({ "upstream": format!("{host}:{}", redis.addr().port()) });
        let (status, shown) = ask(&router, "POST", "/proxies/later", upstream).await;
        assert_eq!(status, StatusCode::OK, "{shown}");
        let client = redis::Client::open(format!("redis://{listen}")).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let () = connection.set("key", 1).await.unwrap();
    }
    for wrong in ["nowhere", "a b:1", "host:port", "host:0", "redis://host:1"] {
        let body = json!({ "name": "wrong", "upstream": wrong });
        let (status, said) = ask(&router, "POST", "/proxies", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
    }
}

#[tokio::test]
async fn d7_populate_makes_all_of_its_proxies_or_none() {
    let router = router(Proxies::new(1));
    let old = json!({ "name": "old", "upstream": "127.0.0.1:1", "toxics": [{ "type": "down" }] });
    let (_, shown) = ask(&router, "POST", "/proxies", old).await;
    let (_, before) = ask(&router, "GET", "/proxies", Value::Null).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let new = json!({ "name": "new", "upstream": "127.0.0.1:2" });
    let moved = json!({ "name": "old", "listen": shown["listen"], "upstream": "127.0.0.1:2" });
    for (last, status) in [
        (json!({ "name": "old", "upstream": "nonsense" }), 400),
        (
            json!({ "name": "x", "upstream": "127.0.0.1:1", "listen": "nonsense" }),
            400,
        ),
        (json!({ "name": "new", "upstream": "127.0.0.1:1" }), 400),
        (
            json!({ "name": "x", "upstream": "127.0.0.1:1", "listen": taken }),
            500,
        ),
    ] {
        let first = if last["name"] == "old" { &new } else { &moved };
        let body = json!([new, first, last]);
        let body = if first == &new {
            json!([new, last])
        } else {
            body
        };
        let (code, said) = ask(&router, "POST", "/populate", body).await;
        assert_eq!(code.as_u16(), status, "{said}");
        let (_, left) = ask(&router, "GET", "/proxies", Value::Null).await;
        assert_eq!(left, before, "after {last}");
    }
    let (code, said) = ask(&router, "POST", "/populate", json!([new, moved])).await;
    assert_eq!(code, StatusCode::CREATED, "{said}");
    assert_eq!(said["proxies"][1]["listen"], shown["listen"]);
    assert_eq!(said["proxies"][1]["upstream"], "127.0.0.1:2");
}

#[tokio::test]
async fn d7_toxics_given_at_creation_are_applied_and_unknown_members_refused() {
    let router = router(Proxies::new(1));
    let with = |member: &str, value: Value| {
        let mut proxy = json!({ "name": "p", "upstream": "127.0.0.1:1" });
        proxy[member] = value;
        proxy
    };
    let slow = json!({ "type": "latency", "attributes": { "latency": 5 } });
    for (member, value, status) in [
        ("enabledd", json!(false), 400),
        ("toxics", json!([{ "type": "earthquake" }]), 400),
        (
            "toxics",
            json!([{ "type": "latency", "toxicityy": 0.5 }]),
            400,
        ),
        ("toxics", json!([slow, slow]), 409),
        (
            "toxics",
            json!([{ "type": "latency", "attributes": { "latencyy": 5 } }]),
            400,
        ),
        ("toxics", json!([slow]), 201),
    ] {
        let (code, said) = ask(&router, "POST", "/proxies", with(member, value)).await;
        assert_eq!(code.as_u16(), status, "{member}: {said}");
        if status == 201 {
            assert_eq!(said["toxics"][0]["attributes"]["latency"], 5, "{said}");
        }
    }
    let path = "/proxies/p/toxics/latency_downstream";
    let (_, whole) = ask(&router, "GET", path, Value::Null).await;
    for (method, path, body, status) in [
        ("POST", "/proxies/p", json!({ "enabledd": false }), 400),
        ("POST", "/proxies/p", json!({ "toxics": null }), 200),
        ("POST", "/proxies/p", json!({ "toxics": [whole] }), 200),
        (
            "POST",
            "/populate",
            json!([with("enabledd", json!(false))]),
            400,
        ),
        (
            "POST",
            "/populate",
            json!([with("toxics", Value::Null)]),
            201,
        ),
        (
            "POST",
            "/proxies/p/toxics",
            json!({ "type": "stall", "toxicityy": 1 }),
            400,
        ),
        (
            "POST",
            "/proxies/p/toxics",
            json!({ "type": "stall", "attributes": null }),
            200,
        ),
        ("POST", path, json!({ "toxicityy": 0.5 }), 400),
        ("POST", path, json!({ "type": "stall" }), 400),
        ("POST", path, json!({ "attributes": 5 }), 400),
        ("POST", path, whole.clone(), 200),
    ] {
        let (code, said) = ask(&router, method, path, body.clone()).await;
        assert_eq!(code.as_u16(), status, "{path} {body}: {said}");
    }
    let (_, toxics) = ask(&router, "GET", "/proxies/p/toxics", Value::Null).await;
    assert_eq!(toxics[0], whole, "an update leaves them as they are");
}

#[tokio::test]
async fn d7_whoever_hangs_up_in_the_midst_of_a_change_leaves_no_half_of_it() {
    let router = router(Proxies::new(1));
    let old = json!({ "name": "old", "upstream": "127.0.0.1:1" });
    let (_, shown) = ask(&router, "POST", "/proxies", old).await;
    for path in ["/populate", "/proxies/old"] {
        for polls in 1..40 {
            // Another upstream each time, on the port that the one before has.
            let upstream = format!("127.0.0.1:{}", 1 + polls % 2);
            let moved = json!({ "name": "old", "listen": shown["listen"], "upstream": upstream });
            let body = match path {
                "/populate" => json!([moved]),
                _ => moved,
            };
            let mut asked = Box::pin(ask(&router, "POST", path, body));
            for _ in 0..polls {
                if futures_util::poll!(&mut asked).is_ready() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            drop(asked);
            let (_, left) = ask(&router, "GET", "/proxies", Value::Null).await;
            let listen = &left["old"]["listen"];
            assert_eq!(listen, &shown["listen"], "{path}, {polls} polls: {left}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d7_what_is_said_of_a_proxy_that_is_there_is_honoured_or_refused() {
    let redis = Redis::start().await.unwrap();
    let router = router(Proxies::new(1));
    let upstream = redis.addr().to_string();
    let mut made = json!({ "name": "p", "upstream": upstream });
    let (_, shown) = ask(&router, "POST", "/proxies", made.clone()).await;
    made["listen"] = shown["listen"].clone();
    let url = format!("redis://{}", shown["listen"].as_str().unwrap());
    let renamed = json!({ "name": "q" });
    let (status, said) = ask(&router, "POST", "/proxies/p", renamed).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{said}");
    let mut taken_hold = Vec::new();
    for (path, member, resp) in [
        ("/proxies/p", "resp", true),
        ("/proxies/p", "enabled", true),
        ("/populate", "resp", false),
        ("/populate", "enabled", true),
    ] {
        let mut change = made.clone();
        change[member] = json!(if member == "resp" { resp } else { true });
        let body = match path {
            "/populate" => json!([change]),
            _ => change,
        };
        let (status, said) = ask(&router, "POST", path, body).await;
        assert!(status.is_success(), "{said}");
        let client = redis::Client::open(url.as_str()).unwrap();
        let mut open = client.get_multiplexed_async_connection().await.unwrap();
        let () = open.set("key", 1).await.unwrap();
        let loading = json!({ "type": "resp_error", "name": "loading",
            "attributes": { "error": "loading", "commands": ["GET"] } });
        let (status, said) = ask(&router, "POST", "/proxies/p/toxics", loading).await;
        assert_eq!(status, StatusCode::OK, "{said}");
        taken_hold.push(open.get::<_, i32>("key").await.is_err());
        let gone = "/proxies/p/toxics/loading";
        ask(&router, "DELETE", gone, Value::Null).await;
    }
    assert_eq!(taken_hold, [true, true, false, false]);
}
