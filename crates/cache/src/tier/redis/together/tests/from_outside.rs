use steadfast::BreakerMode;
use steadfast_drill::waiting::eventually;

use super::*;
use crate::answer::{Answer, Source};

const KEYS: usize = 16;

/// Redis rounds, and its clock is not ours.
const SLACK: Duration = Duration::from_millis(50);

/// What becomes of the time that Redis keeps a value for.
const CHANGES: [&[&str]; 4] = [
    &["PERSIST"],
    &["PEXPIRE", "315360000000"],
    &["PEXPIRE", "60000"],
    &[],
];

fn connection(server: &Redis) -> redis::Connection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_connection().unwrap()
}

impl World {
    /// Puts a value of each key, into no tier but Redis.
    async fn put_all(&self) {
        let users = self.cache.view::<String>("user").unwrap();
        for n in 0..KEYS {
            while !users.put(n, text_of(n, 9)).await.redis {}
        }
        self.empty_memory();
    }

    fn empty_memory(&self) {
        for n in 0..KEYS {
            let memory = &self.cache.inner.memory;
            memory.remove(format!("user:{n}").as_bytes());
        }
    }

    /// Reads all keys at once, as an application does, with a loader that answers at once.
    async fn get_all(&self) -> Vec<Answer<String>> {
        self.empty_memory();
        let users = self.cache.view::<String>("user").unwrap();
        let gets = (0..KEYS).map(|n| {
            let load = || async { Ok(Some("loaded".to_owned())) };
            let users = &users;
            async move { users.get(n, load).await.unwrap() }
        });
        join_all(gets).await
    }

    /// Looks at all keys at once, as readers do that name no tag, and returns the ages.
    async fn ages_of_all(&self) -> Vec<Option<Duration>> {
        let view = self.view().await;
        let looks = (0..KEYS).map(|n| {
            let view = view.clone();
            async move {
                let key = format!("user:{n}");
                let wanted = Wanted {
                    key: key.as_bytes(),
                    tags: &[],
                    class: 0,
                };
                let (mut allowance, carries) = (self.tier.allowance(), |_: &[&[u8]]| true);
                let look = self.tier.look_once(&wanted, view, &mut allowance, &carries);
                match look.await.unwrap() {
                    Lookup::Hit(value) => Some(value.age),
                    Lookup::Miss(_) => None,
                }
            }
        });
        join_all(looks).await
    }

    fn name(&self, n: usize) -> Vec<u8> {
        let epoch = self.tier.epoch_guard.epoch().unwrap();
        self.tier
            .names
            .value(&epoch, format!("user:{n}").as_bytes())
    }
}

/// As `docs/design/consistency.md` says under *Ages*: PERSIST and PEXPIRE change nothing for who
/// asks together. Alone, one takes the value for none that never expires or could not have so much
/// time left, and for old that has little left; and what is loaded then has its time again.
#[tokio::test]
async fn k10_who_gives_a_value_another_time_to_live_makes_it_no_younger() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 1 << 30).await;
    let mut redis = connection(&server);
    let before = clock();
    world.put_all().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    for n in 0..KEYS {
        if let [command, times @ ..] = CHANGES[n % 4] {
            let mut change = redis::cmd(command);
            change.arg(world.name(n)).arg(times);
            assert_eq!(change.query::<u8>(&mut redis).unwrap(), 1);
        }
    }
    let together = &world.tier.together;
    let others: Vec<_> = (0..SEVERAL).map(|_| together.looks()).collect();
    let shared = world.shared();
    for (n, answer) in world.get_all().await.into_iter().enumerate() {
        assert_eq!(answer.value, Some(text_of(n, 9)), "{n}");
        assert_eq!((answer.source, answer.stale), (Source::Redis, None), "{n}");
        assert!(
            answer.age + SLACK >= Duration::from_millis(300),
            "{n}: {answer:?}"
        );
        assert!(answer.age <= clock() - before + SLACK, "{n}: {answer:?}");
    }
    assert!(world.shared() >= shared + KEYS as u64);
    // However long Redis keeps it, it is served no longer than its time.
    let keep = 3_960_000;
    let mut bytes: Vec<u8> = redis::cmd("GET")
        .arg(world.name(0))
        .query(&mut redis)
        .unwrap();
    let expires = Envelope::decode(&bytes, 1 << 20).unwrap().expires.unwrap();
    stamp(&mut bytes, expires - keep);
    let mut set = redis::cmd("SET");
    set.arg(world.name(0)).arg(bytes).exec(&mut redis).unwrap();
    let answers = world.get_all().await;
    assert_eq!(answers[0].value.as_deref(), Some("loaded"));
    assert_eq!(answers[4].value, Some(text_of(4, 9)));

    drop(others);
    together.part(LONG * 2);
    let shared = world.shared();
    for (n, answer) in world.get_all().await.into_iter().enumerate().skip(1) {
        let is_fresh = answer.source == Source::Redis && answer.stale.is_none();
        assert_eq!(is_fresh, CHANGES[n % 4].is_empty(), "{n}: {answer:?}");
    }
    assert_eq!(world.shared(), shared);
    // A load whose reader was in a hurry, on a busy machine, stores nothing.
    let mut tries = 0..100;
    loop {
        assert_eq!(world.cache.finish_loads(LONG).await, 0);
        let mut left = redis::pipe();
        for n in 0..KEYS {
            left.cmd("PTTL").arg(world.name(n));
        }
        let left: Vec<i64> = left.query(&mut redis).unwrap();
        let keep = keep as i64;
        if left.iter().all(|left| (keep / 2..=keep).contains(left)) {
            break;
        }
        assert!(tries.next().is_some(), "{left:?}");
        world.get_all().await;
    }
}

/// All that the cache has in one server is moved to another by hand. By one clock the ages are
/// right. By another's they are wrong by the difference for who asks together, and what would have
/// more time left than it was given is none.
#[tokio::test]
async fn k10_what_is_moved_to_a_server_with_another_clock_is_wrong_by_the_difference_at_most() {
    let (from, to) = (Redis::start().await.unwrap(), Redis::start().await.unwrap());
    let before = clock();
    let first = World::new(&from.url(), 1 << 30).await;
    first.put_all().await;
    let (mut out, mut into) = (connection(&from), connection(&to));
    let difference = 60_000;
    let clocks = [0, difference, -difference];
    let name_of = |n| first.name(n);
    for n in 0..KEYS {
        // As if by the clock of the server that it comes from.
        let name = name_of(n);
        let (mut bytes, left): (Vec<u8>, u64) = redis::pipe()
            .get(&name)
            .pttl(&name)
            .query(&mut out)
            .unwrap();
        let expires = Envelope::decode(&bytes, 1 << 20).unwrap().expires.unwrap();
        stamp(&mut bytes, expires.saturating_add_signed(clocks[n % 3]));
        let mut set = redis::cmd("SET");
        set.arg(&name).arg(bytes).arg("PX").arg(left);
        set.exec(&mut out).unwrap();
    }
    let all: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query(&mut out).unwrap();
    for name in all {
        let (left, dump): (i64, Vec<u8>) = redis::pipe()
            .pttl(&name)
            .cmd("DUMP")
            .arg(&name)
            .query(&mut out)
            .unwrap();
        let mut restore = redis::cmd("RESTORE");
        restore.arg(&name).arg(left.max(0)).arg(dump);
        restore.exec(&mut into).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let database = first.cache.database().clone();
    let second = World::over(database, LONG, &to.url(), 1 << 30, folder).await;
    second.view().await;
    assert_eq!(second.name(0), first.name(0), "it is warm");
    let together = &second.tier.together;
    let others: Vec<_> = (0..SEVERAL).map(|_| together.looks()).collect();
    let shared = second.shared();
    let most = || clock() - before + SLACK;
    let looked = second.ages_of_all().await;
    assert!(second.shared() >= shared + KEYS as u64);
    for (n, age) in looked.into_iter().enumerate() {
        let another = Duration::from_millis(difference as u64);
        match n % 3 {
            0 => assert!(age.unwrap() <= most(), "{n}: {age:?}"),
            1 => assert_eq!(age, None, "{n}"),
            _ => {
                let age = age.unwrap();
                assert!(
                    age + SLACK >= another && age <= another + most(),
                    "{n}: {age:?}"
                );
            }
        }
    }
    drop(others);
    together.part(LONG * 2);
    for age in second.ages_of_all().await {
        assert!(age.unwrap() <= most(), "{age:?}");
    }
}

/// Some readers go away while the question is on its way that they share with others.
#[tokio::test]
async fn k3_readers_that_go_away_while_their_question_is_answered_take_nobodys_answer_along() {
    let server = Redis::start().await.unwrap();
    let world = World::new(&server.url(), 1 << 30).await;
    world.store(KEYS, 9).await;
    let view = world.view().await;
    for stays in [0, 1, 2] {
        server.freeze().unwrap();
        let shared = world.shared();
        let others: Vec<_> = (0..SEVERAL).map(|_| world.tier.together.looks()).collect();
        let mut looks: Vec<_> = (0..KEYS)
            .map(|n| Some(Box::pin(world.look(n, view.clone()))))
            .collect();
        for look in looks.iter_mut().flatten() {
            assert!(poll!(look).is_pending());
        }
        until("the question is on its way", || {
            world.open_number().is_none() && world.tier.together.open.lock().due.is_empty()
        })
        .await;
        for (n, look) in looks.iter_mut().enumerate() {
            assert!(poll!(look.as_mut().unwrap()).is_pending());
            if n % 3 != stays {
                drop(look.take());
            }
        }
        server.resume().unwrap();
        for (n, look) in looks.into_iter().enumerate() {
            if let Some(look) = look {
                let found = tokio::time::timeout(LONG * 2, look).await;
                assert_eq!(found.unwrap().unwrap(), Some(text_of(n, 9)), "{n}");
            }
        }
        assert_eq!(world.shared(), shared + KEYS as u64, "all were asked for");
        drop(others);
        assert_eq!(world.tier.together.looking.load(Ordering::Relaxed), 0);
    }
    world.each_gets_its_own(KEYS, 9).await;
}

/// As a replica does after a resync, and unlike one that was restarted: its connections stand. It
/// tells the time and refuses the values.
#[tokio::test]
async fn k2_a_server_that_begins_to_load_is_asked_once_for_all_and_again_when_it_has() {
    let server = Redis::builder()
        .config("enable-debug-command", "yes")
        .config("rdbcompression", "no")
        .config("key-load-delay", "2000")
        .config("loading-process-events-interval-bytes", "1024")
        .start()
        .await
        .unwrap();
    let world = World::new(&server.url(), 1 << 30).await;
    world.put_all().await;
    let view = world.view().await;
    let client = world.tier.client();
    client.set_breaker_mode(BreakerMode::ForcedClosed);
    let ballast = ["DEBUG", "POPULATE", "10000", "ballast", "200"];
    server.command(&ballast).await.unwrap();
    let mut redis = connection(&server);
    let reloading = std::thread::spawn(move || {
        redis::cmd("DEBUG").arg("RELOAD").exec(&mut redis).unwrap();
    });
    eventually("it loads its data", || async {
        let persistence = server.info("persistence").await;
        persistence.is_ok_and(|persistence| persistence.contains("\nloading:1"))
    })
    .await;
    let others: Vec<_> = (0..SEVERAL).map(|_| world.tier.together.looks()).collect();
    let (times, refused) = (
        calls(&server, "time").await,
        refusals(&server, "mget").await,
    );
    let looks = (0..KEYS).map(|n| world.look(n, view.clone()));
    for found in join_all(looks).await {
        let Err(RedisFailure::Failed(error)) = found else {
            panic!("{found:?}");
        };
        assert_eq!(error.code(), Some("LOADING"));
    }
    assert_eq!(calls(&server, "time").await, times + 1);
    let refused = refusals(&server, "mget").await - refused;
    assert!(refused < KEYS as u64, "{refused}"); // the relay asks too, now and then
    for answer in world.get_all().await {
        assert_eq!(answer.value.as_deref(), Some("loaded"));
        assert_eq!(answer.source, Source::Database);
    }
    let at_once = ["CONFIG", "SET", "key-load-delay", "0"];
    server.command(&at_once).await.unwrap();
    reloading.join().unwrap();
    eventually("its values are read again, together", || async {
        let shared = world.shared();
        let answers = world.get_all().await;
        answers.iter().all(|answer| answer.source == Source::Redis) && world.shared() > shared
    })
    .await;
    drop(others);
}

async fn calls(server: &Redis, command: &str) -> u64 {
    count(server, command, "calls").await
}

async fn refusals(server: &Redis, command: &str) -> u64 {
    count(server, command, "rejected_calls").await
}

/// A figure of INFO commandstats.
async fn count(server: &Redis, command: &str, what: &str) -> u64 {
    let stats = server.info("commandstats").await.unwrap();
    let prefix = format!("cmdstat_{command}:");
    let fields = stats.lines().find_map(|line| line.strip_prefix(&prefix));
    let fields = fields.into_iter().flat_map(|fields| fields.split(','));
    let figure = fields
        .filter_map(|field| field.split_once('='))
        .find(|(name, _)| *name == what);
    figure.map_or(0, |(_, count)| count.trim().parse().unwrap())
}
