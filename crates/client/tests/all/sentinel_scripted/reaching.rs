//! How sentinels are reached, and how many.

use super::*;
use crate::support::{Faulty, KeptAwake, Then};

/// A name that stands for all of these; IP addresses are their own.
#[derive(Debug)]
struct Several(Vec<SocketAddr>);

impl Resolve for Several {
    fn resolve(&self, host: &str, port: u16) -> BoxFuture<'_, std::io::Result<Vec<SocketAddr>>> {
        let own = host.parse().ok().map(|ip| SocketAddr::new(ip, port));
        let found = own.map_or_else(|| self.0.clone(), |own| vec![own]);
        Box::pin(std::future::ready(Ok(found)))
    }
}

#[tokio::test]
async fn c8_t17_of_several_addresses_of_a_sentinel_the_one_that_answers_wins_whatever_comes_first()
{
    let primary = server().await;
    // It accepts, and never answers.
    let frozen = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ignorant = Scripted::start("ignorant", primary.addr(), 1).await;
    ignorant.says(|says| says.manner = Manner::Only("*-1"));
    let yes = Scripted::start("says yes", primary.addr(), 1).await;
    yes.says(|says| says.manner = Manner::Only("+OK"));
    let well = Scripted::start("well", primary.addr(), 1).await;
    let unwell = [
        frozen.local_addr().unwrap(),
        primary.addr(),
        ignorant.addr,
        yes.addr,
    ];
    for first in 0..unwell.len() {
        let mut addresses = unwell.to_vec();
        addresses.rotate_left(first);
        addresses.push(well.addr);
        let client = Client::builder("redis-sentinel://the-name/main")
            .unwrap()
            .resolver(Several(addresses))
            .deadline(ms(8_000))
            .connect()
            .await
            .unwrap();
        assert_eq!(served_by(&client).await, primary.addr().to_string());
    }
    // If none of them is one, the one that says most is quoted.
    let client = Client::builder("redis-sentinel://the-name/main")
        .unwrap()
        .resolver(Several(unwell.to_vec()))
        .build()
        .unwrap();
    let said = || client.status().sentinel.unwrap().sentinels[0].error.clone();
    until("it is said", || {
        said().is_some_and(|said| said.contains("not a sentinel"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 8)]
async fn c8_t17_what_others_wrote_may_hang_panic_or_keep_its_thread_and_sentinels_are_asked() {
    let _awake = KeptAwake::here();
    let primary = server().await;
    let sentinel = Scripted::start("well", primary.addr(), 1).await;
    let finds = async |then: Then, of: &'static str| {
        let faulty = Faulty::new(then, sentinel.addr);
        let fault = faulty.clone();
        let builder = Client::builder("redis-sentinel://the-name/main").unwrap();
        let builder = builder.connect_timeout(ms(200)).heartbeat(ms(50));
        let client = match of {
            "provider" => builder
                .resolver(Several(vec![sentinel.addr]))
                .sentinel_credentials_from(faulty),
            "resolver" => builder.resolver(faulty),
            _ => builder
                .resolver(Several(vec![sentinel.addr]))
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
        until_state(&client, ConnectionState::Ready).await;
        assert_eq!(served_by(&client).await, primary.addr().to_string());
        until("what the primary tells of its replicas is known", || {
            client.status().sentinel.unwrap().replicas_known
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
    for (client, counted, of) in futures_util::future::join_all(cases).await {
        let resets = client.status().stuck_resets;
        assert_eq!(resets > 0, counted, "{of:?}: {resets}");
    }
}

#[tokio::test]
async fn c16_a_sentinel_that_answers_auth_by_anything_but_ok_is_none() {
    let primary = server().await;
    let sentinel = Scripted::start("odd", primary.addr(), 1).await;
    sentinel.says(|says| says.manner = Manner::Only("+QUEUED"));
    let url = format!(
        "redis-sentinel://{}/main?sentinel_password=secret",
        sentinel.addr
    );
    let client = Client::builder(&url).unwrap().build().unwrap();
    until("it is said", || {
        let said = contact(&client, sentinel.addr).error.unwrap_or_default();
        said.contains("answers AUTH by what is no answer")
    })
    .await;
}

#[tokio::test]
async fn t2_when_all_addresses_change_service_is_back_once_a_seed_s_name_leads_to_a_sentinel() {
    let (old, new) = two().await;
    let names = Names::default();
    let first = Scripted::start("first", old.addr(), 1).await;
    names.leads("watch.test", first.addr);
    let client = Client::builder("redis-sentinel://watch.test/main")
        .unwrap()
        .resolver(names.clone())
        .connect()
        .await
        .unwrap();
    assert_eq!(served_by(&client).await, old.addr().to_string());
    // All of them are gone at once: the sentinel, and the primary. And nothing of the new ones is
    // newer by its epoch: they were made anew.
    drop(first);
    old.kill().await;
    until_state(&client, ConnectionState::Down).await;
    let second = Scripted::start("second", new.addr(), 1).await;
    names.leads("watch.test", second.addr);
    until_state(&client, ConnectionState::Ready).await;
    assert_eq!(served_by(&client).await, new.addr().to_string());
    assert_eq!(believed(&client), Some(new.addr().to_string()));
}

#[tokio::test]
async fn t31_a_sentinel_that_tells_of_a_hundred_others_has_no_more_than_the_bound_asked() {
    let primary = Redis::start().await.unwrap();
    let first = Scripted::start("first", primary.addr(), 1).await;
    let peers = (1..=100).map(|n| (format!("peer-{n}"), SocketAddr::from(([127, 0, 0, 1], n))));
    first.says(|says| says.peers = peers.collect());
    let sentinels = [first];
    let client = builder_of(&sentinels).connect().await.unwrap();
    until("as many are asked as may be", || {
        client.status().sentinel.unwrap().sentinels.len() == 32
    })
    .await;
    client.send(&cmd("SET k v")).await.unwrap();
    let asked = sentinels[0].asked().len();
    client.reconnect();
    until("it is asked again", || sentinels[0].asked().len() > asked).await;
    let status = client.status().sentinel.unwrap();
    assert_eq!((status.sentinels.len(), status.voters), (32, 32));
}

#[tokio::test]
async fn t31_clients_that_start_together_do_not_come_with_all_their_connections_at_once() {
    let primary = Redis::start().await.unwrap();
    let sentinels = Scripted::several(1, primary.addr(), 1).await;
    let clients: Vec<_> = (0..30)
        .map(|_| builder_of(&sentinels).build().unwrap())
        .collect();
    let listened_to = || sentinels[0].part.listened_to.lock().unwrap().clone();
    until("all listen", || listened_to().len() == clients.len()).await;
    let times = listened_to();
    let (first, last) = (times.iter().min().unwrap(), times.iter().max().unwrap());
    // Of thirty that are spread over a second.
    let spread = last.duration_since(*first);
    assert!(spread > ms(400), "{spread:?}");
}
