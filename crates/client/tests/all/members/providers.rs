//! Providers, resolvers and translations that others wrote, and credentials that change.

use steadfast::credentials::{Credentials, CredentialsError, CredentialsProvider, FileCredentials};

use super::*;
use crate::support::{Faulty, KeptAwake, Then};

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn c8_t18_what_others_wrote_may_hang_panic_or_keep_its_thread_and_a_view_comes_all_the_same()
{
    let _awake = KeptAwake::here();
    let cluster = alone().await;
    let at = cluster.node(0).addr();
    let seed = || Client::builder("redis-cluster://app:pw@the-name").unwrap();
    let finds = async |then: Then, of: &'static str| {
        let faulty = Faulty::new(then, at);
        let fault = faulty.clone();
        let builder = seed().connect_timeout(ms(200));
        let client = match of {
            "provider" => builder.resolver(Leads(at)).credentials(faulty),
            "resolver" => builder.resolver(faulty),
            _ => builder
                .resolver(Leads(at))
                .translate_addresses(move |host, port| faulty.translate(host, port)),
        };
        let client = client.build().unwrap();
        let counted = then == Then::Block || then == Then::Panic && of != "translation";
        if counted {
            until(&format!("{then:?} {of} is counted"), || {
                client.status().stuck_resets > 0
            })
            .await;
        }
        // What keeps its thread keeps its place, too: nobody is asked there until it has ended.
        fault.end();
        until("there is a view", || {
            client.state() == ConnectionState::Ready
        })
        .await;
        // Within 200 ms a busy machine, of which some threads are kept, may connect to nobody.
        eventually("it serves", async || {
            client.send(&cmd("GET k")).await.is_ok()
        })
        .await;
        (client, counted, (then, of))
    };
    let parts = ["provider", "resolver", "translation"];
    let cases = [Then::Hang, Then::Panic, Then::Block];
    let cases = cases
        .into_iter()
        .flat_map(|then| parts.map(|of| finds(then, of)));
    // What keeps its thread is counted last: nothing else was by then.
    for (client, counted, of) in join_all(cases).await {
        let resets = client.status().stuck_resets;
        assert_eq!(resets > 0, counted, "{of:?}: {resets}");
    }
    gives_nothing_more(&cluster).await;
}

/// Gives credentials until it is told to give no more.
#[derive(Clone, Debug, Default)]
struct RunsDry(Arc<AtomicBool>);

impl CredentialsProvider for RunsDry {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        Box::pin(async {
            match self.0.load(Ordering::Relaxed) {
                false => Ok(Credentials::new("app", "pw")),
                true => Err(CredentialsError::new("it has none")),
            }
        })
    }

    fn renew_in(&self) -> Option<Duration> {
        None
    }
}

/// Nodes are asked who serves by what the provider gave last.
async fn gives_nothing_more(cluster: &Cluster) {
    let provider = RunsDry::default();
    let builder = Client::builder(&cluster.url()).unwrap();
    let client = builder.credentials(provider.clone()).build().unwrap();
    until("it is there", || client.state() == ConnectionState::Ready).await;
    client.send(&cmd("GET k")).await.unwrap();
    let asked = || client.status().cluster.unwrap().discoveries;
    let (before, since) = (asked(), now());
    provider.0.store(true, Ordering::Relaxed);
    let kill = ["CLIENT", "KILL", "USER", "app"];
    cluster.node(0).command(&kill).await.unwrap();
    until("it tells again who serves", || {
        let passed = now().duration_since(since).as_secs_f64() * 1_000.0;
        let heard = client.status().cluster.unwrap().heard_ms_ago;
        asked() > before && heard.is_some_and(|ago| ago < passed)
    })
    .await;
}

#[derive(Debug)]
struct NeverAnswers;

impl CredentialsProvider for NeverAnswers {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        Box::pin(std::future::pending())
    }

    fn renew_in(&self) -> Option<Duration> {
        None
    }
}

/// The last error of a discovery.
async fn until_found_out(client: &Client, words: &str) {
    until(words, || {
        let error = client.status().cluster.unwrap().error;
        error.is_some_and(|error| error.contains(words))
    })
    .await;
}

#[tokio::test]
async fn c16_t18_a_slow_provider_is_named_and_a_node_that_answers_auth_by_anything_but_ok_is_none()
{
    let odd = Server::start(Script::new().send("+QUEUED\r\n"))
        .await
        .unwrap();
    let url = format!("redis-cluster://app:pw@{}", odd.addr());
    let client = Client::builder(&url).unwrap().build().unwrap();
    until_found_out(&client, "answers AUTH by what is no answer").await;
    let builder = Client::builder(&url).unwrap().credentials(NeverAnswers);
    let client = builder.connect_timeout(ms(50)).build().unwrap();
    until_found_out(&client, "credentials took longer than 50ms").await;
}

#[tokio::test]
async fn c16_subscribers_in_a_cluster_take_new_credentials_as_they_live() {
    let cluster = alone().await;
    let node = cluster.node(0);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("credentials");
    std::fs::write(&file, "app:pw").unwrap();
    let url = format!("redis-cluster://{}", node.addr());
    let mut all = Vec::new();
    // One that calls too, and one that does nothing but listen.
    for calls in [true, false] {
        let builder = Client::builder(&url).unwrap().name("rotating");
        let provider = FileCredentials::new(&file, None).look_every(ms(50));
        let client = builder.credentials(provider).build().unwrap();
        until("there is a view", || {
            client.state() == ConnectionState::Ready
        })
        .await;
        if calls {
            client.send(&cmd("SET k v")).await.unwrap();
        }
        let mut pubsub = client.pubsub();
        pubsub.subscribe("news").await.unwrap();
        let resumed = pubsub.next().await;
        assert!(
            matches!(resumed, Some(PubSubEvent::Resumed { .. })),
            "{resumed:?}"
        );
        all.push((client, pubsub));
    }
    let users = || {
        let list = node.command_blocking(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        let list: String = redis::from_redis_value(list.unwrap()).unwrap();
        list.matches(" user=next ").count()
    };
    std::fs::write(&file, "next:pw").unwrap();
    until("both have given the new ones", || users() == 2).await;
    node.command(&["PUBLISH", "news", "x"]).await.unwrap();
    for (_client, pubsub) in &mut all {
        let event = pubsub.next().await;
        assert!(
            matches!(event, Some(PubSubEvent::Message { .. })),
            "{event:?}"
        );
    }
}

/// Where every name leads.
#[derive(Debug)]
struct Leads(SocketAddr);

impl Resolve for Leads {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, io::Result<Vec<SocketAddr>>> {
        let own = host.parse().ok().map(|ip| SocketAddr::new(ip, port));
        Box::pin(std::future::ready(Ok(vec![own.unwrap_or(self.0)])))
    }
}
