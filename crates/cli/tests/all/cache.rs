use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use steadfast_cache::{Cache, Database, DatabaseOptions, Ttl};
use steadfast_drill::fault::{Latency, Toxic};
use steadfast_drill::process::{Cluster, Redis};
use steadfast_drill::proxy::Proxy;

use crate::program::{Ended, finish, run, steadfast};

/// A service's Redis, unless somebody else has it, and its configuration with a table in SQLite.
struct Site {
    redis: Option<Redis>,
    folder: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        let redis = Redis::start().await.unwrap();
        let mut site = Self::at(&redis.url());
        site.redis = Some(redis);
        site
    }

    /// Redis may take longer than by default: a busy machine is no failure.
    fn at(redis: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "namespace = 'shop'\n[redis]\nurl = '{redis}'\ndeadline = '3s'\n[cache]\nredis_limit = '3s'\n[database]\nurl = 'sqlite://{}'\n[ttl.long]\nfresh = '1h'\nhard_limit = '30s'\n\
             [queries.square]\nsql = 'SELECT :n * :n AS square'\nkey = 'square:{{n}}'\nttl = 'long'\ntags = ['squares']\n\
             params.n = {{ type = 'integer' }}\n",
            folder.path().join("shop.db").display()
        );
        std::fs::write(folder.path().join("shop.toml"), config).unwrap();
        let redis = None;
        Self { redis, folder }
    }

    fn config(&self) -> String {
        self.folder.path().join("shop.toml").display().to_string()
    }

    async fn cache(&self, args: &[&str]) -> Ended {
        let config = self.config();
        run(&[&["cache", args[0], "--config", &config], &args[1..]].concat()).await
    }

    async fn source(&self, n: &str) -> String {
        let ended = self.cache(&["get", "square", &format!("n={n}")]).await;
        assert_eq!(ended.status, Some(0), "{}", ended.all());
        let answer: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        answer["source"].as_str().unwrap().to_owned()
    }
}

#[tokio::test]
async fn a_service_that_asks_its_callers_who_they_are_does_not_ask_its_operator() {
    let site = Site::start().await;
    let mut text = std::fs::read_to_string(site.config()).unwrap();
    text.push_str(
        "[server]\nlisten = '0.0.0.0:0'\nhosts = ['shop.example']\n[auth]\nissuer = 'i'\naudience = 'a'\n\
         audit = '/nowhere/audit.log'\n[auth.keys.one]\nalgorithm = 'HS256'\nsecret = '0123456789abcdef0123456789abcdef'\n\
         [limits.rate.each]\nrequests = 1\nper = '1h'\n",
    );
    std::fs::write(site.config(), text).unwrap();
    assert_eq!(site.source("3").await, "database");
    let mut warm = steadfast(&["cache", "warm", "square", "--config", &site.config()]);
    let mut warm = warm.stdin(Stdio::piped()).spawn().unwrap();
    let lines = "n=1\nn=2\nn=3\n";
    warm.stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    let ended = finish(warm).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    assert!(ended.stdout.contains("2 from database"), "{}", ended.all());
    let wrong = site.cache(&["get", "square", "n=x"]).await;
    assert_eq!(wrong.status, Some(1));
    assert!(
        wrong.stderr.contains("must be a whole number"),
        "{}",
        wrong.all()
    );
}

#[tokio::test]
async fn what_is_cached_can_be_listed_asked_for_and_forgotten() {
    listed_asked_for_and_forgotten(&Site::start().await).await;
}

#[tokio::test]
async fn what_is_cached_on_a_cluster_can_be_listed_asked_for_and_forgotten() {
    let cluster = Cluster::shared().await.unwrap();
    listed_asked_for_and_forgotten(&Site::at(&cluster.url())).await;
}

/// To connect to it takes longer than calls of a service wait for it, and to confirm an
/// invalidation longer than its writers do.
#[tokio::test]
async fn a_redis_that_is_far_away_is_waited_for() {
    let redis = Redis::start().await.unwrap();
    let proxy = Proxy::start(redis.addr()).await.unwrap();
    let far = Latency::of_millis(300);
    proxy.add(Toxic::new(far)).await.unwrap();
    let site = Site::at(&format!("redis://{}", proxy.addr()));
    let ended = site.cache(&["invalidate", "square:2"]).await;
    assert!(ended.stdout.contains("forgotten"), "{}", ended.all());
}

#[tokio::test]
async fn a_namespace_that_another_database_has_taken_is_named_as_what_is_in_the_way() {
    let site = Site::start().await;
    let url = site.redis.as_ref().unwrap().url();
    let folder = tempfile::tempdir().unwrap();
    let database = format!("sqlite://{}", folder.path().join("other.db").display());
    let database = Database::connect(&database, DatabaseOptions::default()).unwrap();
    let client = steadfast::Client::builder(&url).unwrap();
    let other = Cache::builder(database)
        .namespace("shop")
        .class("long", Ttl::default())
        .redis(client.connect().await.unwrap());
    let other = other.build().await.unwrap();
    let has_it = async {
        while !other.status().redis.is_some_and(|redis| redis.trusted) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), has_it)
        .await
        .unwrap();
    let ended = site.cache(&["invalidate", "square:2"]).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    let told = ended
        .stdout
        .contains("another database uses this namespace");
    assert!(told, "{}", ended.all());
}

#[tokio::test]
async fn of_a_cluster_the_shard_of_the_namespace_is_named_if_it_is_what_is_in_the_way() {
    let cluster = Cluster::builder().replicas(0).start().await.unwrap();
    let layout = cluster.layout().await.unwrap();
    let client = steadfast::Client::builder(&cluster.url()).unwrap();
    let slot = client.build().unwrap().toward("{shop}:epoch").slot();
    let owner = layout.owner(slot).unwrap();
    let nodes = (0..3).map(|at| cluster.node(at));
    let (owners, others): (Vec<_>, Vec<_>) = nodes.partition(|node| node.id() == owner);
    let site = Site::at(&cluster.url());
    others[0].kill().await;
    let ended = site.cache(&["invalidate", "square:2"]).await;
    assert!(ended.stdout.contains("forgotten"), "{}", ended.all());
    owners[0].kill().await;
    let ended = site.cache(&["invalidate", "square:2"]).await;
    assert_eq!(ended.status, Some(0), "{}", ended.all());
    let named = format!("{}, which has slot {slot}: ", owners[0].addr());
    let told = ended.stdout.contains("Redis cannot be reached") && ended.stdout.contains(&named);
    assert!(told, "{}", ended.all());
}

async fn listed_asked_for_and_forgotten(site: &Site) {
    let mut warm = steadfast(&["cache", "warm", "square", "--config", &site.config()]);
    let mut warm = warm.stdin(Stdio::piped()).spawn().unwrap();
    warm.stdin
        .take()
        .unwrap()
        .write_all(b"n=2\nn=3\nn=12\n")
        .unwrap();
    let warm = finish(warm).await;
    assert_eq!(warm.status, Some(0), "{}", warm.all());
    assert!(warm.stdout.contains("3 from database"), "{}", warm.all());

    let keys = async |pattern: &str| {
        let ended = site.cache(&["keys", "--matching", pattern]).await;
        assert_eq!(ended.status, Some(0), "{}", ended.all());
        let mut keys: Vec<_> = ended.stdout.lines().map(str::to_owned).collect();
        keys.sort();
        keys
    };
    assert_eq!(keys("*").await, ["square:12", "square:2", "square:3"]);
    assert_eq!(keys("square:?").await, ["square:2", "square:3"]);
    assert_eq!(site.source("2").await, "redis");

    let ended = site.cache(&["invalidate", "square:2"]).await;
    assert!(ended.stdout.contains("forgotten"), "{}", ended.all());
    assert_eq!(
        (site.source("2").await, site.source("3").await),
        ("database".into(), "redis".into())
    );
    site.cache(&["invalidate", "--tag", "squares"]).await;
    assert_eq!(site.source("3").await, "database");
}

#[tokio::test]
async fn an_unknown_query_and_a_redis_that_is_away_are_clear_errors() {
    let site = Site::start().await;
    let ended = site.cache(&["get", "cube", "n=2"]).await;
    assert_eq!(ended.status, Some(1), "{}", ended.all());
    assert!(ended.stderr.contains("cube"), "{}", ended.all());

    site.redis.as_ref().unwrap().kill().await;
    let ended = site.cache(&["keys"]).await;
    assert_eq!(ended.status, Some(69), "{}", ended.all());
    assert!(ended.stderr.contains("refused"), "{}", ended.all());
    assert_eq!(site.source("2").await, "database");
}

#[tokio::test]
async fn keys_are_listed_by_who_the_service_is_and_not_by_its_url_alone() {
    let redis = Redis::builder()
        .acl("app on >secret ~* &* +@all")
        .start()
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (config, password) = (folder.path().join("c.toml"), folder.path().join("password"));
    std::fs::write(&password, "secret").unwrap();
    let text = |password: &std::path::Path| {
        format!(
            "[redis]\nurl = 'redis://{}'\n[redis.credentials]\nsource = 'file'\nuser = 'app'\npath = '{}'\n",
            redis.addr(),
            password.display()
        )
    };
    std::fs::write(&config, text(&password)).unwrap();
    let keys = async || run(&["cache", "keys", "--config", config.to_str().unwrap()]).await;
    let right = keys().await;
    assert_eq!(right.status, Some(0), "{}", right.all());
    std::fs::write(&password, "wrong").unwrap();
    let wrong = keys().await;
    assert_eq!(wrong.status, Some(69), "{}", wrong.all());
    assert!(
        wrong.stderr.contains("WRONGPASS") && !wrong.all().contains("secret"),
        "{}",
        wrong.all()
    );
}
