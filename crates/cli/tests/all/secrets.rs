//! Invariant 6, by planting: every setting that holds a secret gets a marked one, everything is
//! made to go wrong at the loudest level, and whatever the program said anywhere is searched for
//! the marks.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use steadfast_drill::process::{Postgres, Redis};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::program::{Ended, PATIENCE, finish, run, signal, steadfast, wait};

/// In every planted secret, and nowhere else.
const MARK: &str = "PLANTED";

/// Takes whatever is posted to it, as a collector of traces does, and keeps it in a file.
async fn collector(file: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let file = file.clone();
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 << 10];
                let mut taken = Vec::new();
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    taken.extend_from_slice(&buffer[..read]);
                    // The head holds the address and the key as they were configured, and this is
                    // whom they are for.
                    if let Some(end) = taken.windows(4).position(|end| end == b"\r\n\r\n") {
                        taken.drain(..end + 4);
                    }
                    append(&file, &taken);
                    taken.clear();
                    let answer =
                        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                    let _ = stream.write_all(answer).await;
                }
            });
        }
    });
    addr
}

fn append(file: &Path, bytes: &[u8]) {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(file)
        .unwrap();
    file.write_all(bytes).unwrap();
}

/// What a service said, each part under its name.
struct Said {
    folder: tempfile::TempDir,
    parts: AtomicUsize,
    keys: Vec<String>,
}

impl Said {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            parts: AtomicUsize::new(0),
            keys: Vec::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn add(&self, name: &str, bytes: &[u8]) {
        let n = self.parts.fetch_add(1, Relaxed);
        append(
            &self.path(&format!(
                "said-{n:03}-{}",
                name.replace(['/', '?', ' '], "_")
            )),
            bytes,
        );
    }

    fn ended(&self, name: &str, ended: &Ended) {
        self.add(name, ended.all().as_bytes());
    }

    /// A private key in a file, of which a line is a mark.
    fn key(&mut self, name: &str) -> (PathBuf, PathBuf) {
        let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = pair.signing_key.serialize_pem();
        self.keys.push(key.lines().nth(1).unwrap()[16..].to_owned());
        let files = (
            self.path(&format!("{name}.pem")),
            self.path(&format!("{name}.key")),
        );
        std::fs::write(&files.0, pair.cert.pem()).unwrap();
        std::fs::write(&files.1, key).unwrap();
        files
    }

    /// Fails with the first place in which a mark is found; tells how much was searched.
    fn search(&self, more: &[&str]) -> usize {
        let mut searched = 0;
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if !name.starts_with("said-") {
                continue;
            }
            let bytes = std::fs::read(&path).unwrap();
            searched += bytes.len();
            let text = String::from_utf8_lossy(&bytes);
            for mark in std::iter::once(&MARK)
                .chain(more)
                .copied()
                .chain(self.keys.iter().map(String::as_str))
            {
                if let Some(at) = text.find(mark) {
                    let from = text.floor_char_boundary(at.saturating_sub(300));
                    let to = text.ceil_char_boundary((at + 100).min(text.len()));
                    panic!("{name} shows a secret: …{}…", &text[from..to]);
                }
            }
        }
        searched
    }
}

/// One whole exchange; all that comes, or as much of it as comes within a moment where there is no
/// end.
async fn exchange(addr: SocketAddr, head: &str, body: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!(
        "{head}\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let wait = if head.contains("/v1/events") {
        Duration::from_secs(2)
    } else {
        PATIENCE
    };
    let _ = tokio::time::timeout(wait, stream.read_to_end(&mut answer)).await;
    answer
}

struct Service {
    child: Child,
    addr: SocketAddr,
}

/// `steadfast serve` with both outputs in files.
async fn serve(said: &Said, name: &str, config: &str, environment: &[(&str, &str)]) -> Service {
    let file = said.path(&format!("{name}.toml"));
    std::fs::write(&file, config).unwrap();
    let out = said.path(&format!("said-{name}-stdout"));
    let err = std::fs::File::create(said.path(&format!("said-{name}-stderr"))).unwrap();
    let mut command = steadfast(&["serve", "--listen", "127.0.0.1:0", "--config"]);
    command.arg(&file).envs(environment.iter().copied());
    command
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(err)
        .stdin(Stdio::null());
    let mut child = command.spawn().unwrap();
    let started = async {
        loop {
            let text = std::fs::read_to_string(&out).unwrap();
            if let Some(addr) = text
                .lines()
                .find_map(|line| line.rsplit_once("://")?.1.parse().ok())
            {
                return addr;
            }
            if let Some(status) = child.try_wait().unwrap() {
                let said =
                    std::fs::read_to_string(said.path(&format!("said-{name}-stderr"))).unwrap();
                panic!("it ended with {status}: {said}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let addr = tokio::time::timeout(PATIENCE, started).await.unwrap();
    Service { child, addr }
}

impl Service {
    /// Ends it as it is ended in earnest, so that the last it has to say is said.
    async fn end(mut self) {
        signal(self.child.id(), "TERM");
        wait(&mut self.child).await;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Everything that a caller can ask for and do wrong, with these tokens.
async fn ask_everything(said: &Said, addr: SocketAddr, tokens: &[&str]) {
    let askers = tokens.iter().map(|token| ask_as(said, addr, token));
    futures_util::future::join_all(askers).await;
}

async fn ask_as(said: &Said, addr: SocketAddr, token: &str) {
    let get = async |path: &str| {
        let head = format!("GET {path} HTTP/1.1\r\nauthorization: Bearer {token}");
        said.add(path, &exchange(addr, &head, "").await);
    };
    let paths = [
        "/",
        "/health",
        "/health/ready",
        "/metrics",
        "/v1/status",
        "/v1/settings",
        "/v1/history",
        "/openapi.json",
        "/v1/drills",
        "/nowhere",
        "/v1/queries/people?q=ada",
        "/v1/queries/people",
        "/v1/queries/broken",
        "/v1/queries/none",
    ];
    let others = async {
        for path in paths {
            get(path).await;
        }
        for body in [
            "{\"name\":\"PLANTEDidempotentbody\"}",
            "{\"name\":7}",
            "not json",
            "{}",
        ] {
            for statement in ["add", "broken_add"] {
                let head = format!(
                    "POST /v1/statements/{statement} HTTP/1.1\r\nauthorization: Bearer {token}\r\n\
                     content-type: application/json\r\nidempotency-key: PLANTEDidempotencykey"
                );
                let answer = exchange(addr, &head, body).await;
                said.add(statement, &answer);
            }
        }
        let head = format!(
            "GET /v1/queries/people?q=PLANTEDparameter HTTP/1.1\r\nauthorization: Bearer {token}"
        );
        exchange(addr, &head, "").await;
    };
    // What goes wrong meanwhile is told to those who listen.
    tokio::join!(get("/v1/events"), others);
}

const QUERIES: &str = "
[queries.people]
sql = 'SELECT name FROM people WHERE name = :q'
params.q.type = 'string'
[queries.broken]
sql = 'SELECT nothing FROM nowhere'
[statements.add]
sql = 'INSERT INTO people (name) VALUES (:name)'
params.name.type = 'string'
[statements.broken_add]
sql = 'INSERT INTO nowhere (name) VALUES (:name)'
params.name.type = 'string'
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_6_no_planted_secret_is_shown_anywhere_however_loud_and_whatever_fails() {
    let mut said = Said::new();
    let redis = Redis::builder()
        .acl("app on >PLANTEDredispassword ~* &* +@all")
        .start()
        .await
        .unwrap();
    let postgres = Postgres::start().await.unwrap();
    let database = steadfast_cache::Database::connect(&postgres.url(), Default::default()).unwrap();
    let mut tx = database.begin().await.unwrap();
    tx.execute("CREATE TABLE people (name TEXT)", &[])
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let otlp = collector(said.path("said-otlp")).await;
    let (certificate, key) = said.key("client");
    let secret_file = said.path("jwt-secret");
    std::fs::write(
        &secret_file,
        "PLANTEDjwtfilesecret-0123456789-0123456789-0123456789",
    )
    .unwrap();
    let redis_file = said.path("redis-password");
    std::fs::write(&redis_file, "PLANTEDwrongfilepassword").unwrap();
    let audit = said.path("said-audit");
    let auth = format!(
        "[auth]\nissuer = 'us'\naudience = 'steadfast'\naudit = '{}'\n\
         jwks = 'http://user:PLANTEDjwkspassword@127.0.0.1:1/keys?code=PLANTEDjwksquery'\n\
         [auth.keys.dev]\nalgorithm = 'HS256'\nsecret = 'PLANTEDjwtsecret-0123456789-0123456789'\n\
         [auth.keys.filed]\nalgorithm = 'HS256'\nfile = '{}'\n",
        audit.display(),
        secret_file.display()
    );
    let traces = format!(
        "[tracing]\nsample = 1.0\nendpoint = 'http://{otlp}/v1/traces?key=PLANTEDotlpquery'\n"
    );
    let database_tls = format!(
        "[database.tls]\nmode = 'prefer'\ncertificate = '{}'\nkey = '{}'\n",
        certificate.display(),
        key.display()
    );

    // Everything in reach, and loud.
    let works = format!(
        "[log]\nlevel = 'trace'\nformat = 'json'\n[redis]\nurl = 'redis://app:PLANTEDredispassword@{}'\n\
         [database]\nurl = 'postgres://postgres:PLANTEDsqlpassword@{}/postgres?application_name=x'\n{database_tls}\
         {auth}{traces}{QUERIES}",
        redis.addr(),
        postgres.addr()
    );
    let collected = (
        "OTEL_EXPORTER_OTLP_HEADERS",
        "authorization=PLANTEDotlpheader",
    );
    let service = serve(&said, "works", &works, &[collected]).await;
    let file = said.path("works.toml");
    let file = file.to_str().unwrap();
    let mut tokens = vec![
        "PLANTEDgarbage".to_owned(),
        "PLANTED.PLANTED.PLANTED".to_owned(),
    ];
    for (key, role) in [("dev", "admin"), ("filed", "viewer")] {
        let issued = run(&["token", "--config", file, "--key", key, "--role", role]).await;
        assert_eq!(issued.status, Some(0), "{}", issued.all());
        tokens.push(issued.stdout.trim().to_owned());
    }
    let signatures: Vec<String> = tokens[2..]
        .iter()
        .map(|token| token.rsplit('.').next().unwrap().to_owned())
        .collect();
    let all: Vec<&str> = tokens.iter().map(String::as_str).collect();
    ask_everything(&said, service.addr, &all).await;
    // The same with both away, with Redis' password changed, and with a broken file read again.
    redis
        .command(&["ACL", "SETUSER", "app", "resetpass", ">PLANTEDother"])
        .await
        .unwrap();
    redis
        .command(&["CLIENT", "KILL", "TYPE", "normal"])
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    ask_everything(&said, service.addr, &all[2..]).await;
    redis.kill().await;
    postgres.kill().await;
    ask_everything(&said, service.addr, &all[2..]).await;
    let broken =
        "[redis]\nurl = 'PLANTEDnotaurl'\n[auth.keys.k]\nalgorithm = 'PLANTEDno'\nsecret = 7\n";
    let broken = broken.replace("algorithm = 'PLANTEDno'", "algorithm = 'none'");
    std::fs::write(file, &broken).unwrap();
    signal(service.child.id(), "HUP");
    let log = said.path("said-works-stderr");
    let refused = async {
        while !std::fs::read_to_string(&log)
            .unwrap()
            .contains("configuration refused")
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    said.ended("check", &run(&["config", "check", "--config", file]).await);
    let url = format!("http://{}", service.addr);
    said.ended(
        "status",
        &run(&["status", &url, "--token", &tokens[2]]).await,
    );
    service.end().await;

    // Nothing in reach, refused credentials from a file, as text, and a server certificate.
    let redis = Redis::builder()
        .acl("app on >right ~* &* +@all")
        .start()
        .await
        .unwrap();
    let (server_certificate, server_key) = said.key("server");
    let fails = format!(
        "[log]\nlevel = 'trace'\n[server.tls]\ncertificate = '{}'\nkey = '{}'\n[redis]\nurl = 'redis://{}'\n\
         [redis.credentials]\nsource = 'file'\nuser = 'app'\npath = '{}'\n[redis.tls]\ncertificate = '{}'\nkey = '{}'\n\
         [database]\nurl = 'mysql://root:PLANTEDmysqlpassword@127.0.0.1:1/d?PLANTEDname=PLANTEDvalue'\n{auth}{QUERIES}",
        server_certificate.display(),
        server_key.display(),
        redis.addr(),
        redis_file.display(),
        certificate.display(),
        key.display()
    )
    .replace("?PLANTEDname=PLANTEDvalue", "?charset=PLANTEDcharset");
    let service = serve(&said, "fails", &fails, &[]).await;
    said.add(
        "plain",
        &exchange(service.addr, "GET /health HTTP/1.1", "").await,
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    service.end().await;

    // From the environment, and shown.
    let environment = [
        (
            "STEADFAST__REDIS__URL",
            "redis://app:PLANTEDenvurl@127.0.0.1:1",
        ),
        ("DATABASE_URL", "sqlite://:memory:?PLANTED=1"),
        (
            "STEADFAST__AUTH__KEYS__DEV__SECRET",
            "PLANTEDenvsecret-0123456789-0123456789",
        ),
    ];
    for args in [["config", "show"], ["config", "check"]] {
        let mut command = steadfast(&args);
        command
            .args(["--config", said.path("fails.toml").to_str().unwrap()])
            .envs(environment);
        said.ended("config", &finish(command.spawn().unwrap()).await);
    }
    let entra = "[redis.credentials]\nsource = 'entra'\nidentity = 'client_secret'\ntenant = 't'\nclient_id = 'c'\nsecret = 'PLANTEDentrasecret'\n";
    let entra_file = said.path("entra.toml");
    std::fs::write(&entra_file, entra).unwrap();
    for command in ["show", "check"] {
        said.ended(
            "entra",
            &run(&["config", command, "--config", entra_file.to_str().unwrap()]).await,
        );
    }
    // Mistakes in each setting that holds a secret, on lines of every form.
    for (n, text) in [
        "[redis]\nurl = 'PLANTED'",
        "[redis]\nurl = '''\nPLANTED\n'''",
        "[redis]\nurl = ['PLANTED']",
        "redis.url = 'x://u:PLANTED@h'",
        "[database]\nurl = 'PLANTED",
        "[tracing]\nendpoint = 'PLANTED'",
        "[tracing]\nendpoint = 'http://u:PLANTED@h/v1/traces'",
        "[auth]\nissuer='a'\naudience='b'\njwks = 'gopher://PLANTED'",
        "[auth.keys.k]\nalgorithm = 'HS256'\nsecret = 'PLANTEDshort'",
        "[auth.keys.k]\nsecret = PLANTED",
        "[redis.credentials]\nsource = 'PLANTED'\n",
        "PLANTED",
    ]
    .into_iter()
    .enumerate()
    {
        // A word that stands where no secret belongs is shown, and may be.
        if text.contains("source = 'PLANTED'") {
            continue;
        }
        let wrong = said.path(&format!("wrong-{n}.toml"));
        std::fs::write(&wrong, text).unwrap();
        let ended = run(&["config", "check", "--config", wrong.to_str().unwrap()]).await;
        assert_eq!(ended.status, Some(78), "{}", ended.all());
        said.ended(&format!("wrong {n}"), &ended);
    }

    // A probe that is refused, and one that finds nobody.
    for url in [
        format!("redis://app:PLANTEDprobe@{}", redis.addr()),
        "redis://app:PLANTEDprobe@127.0.0.1:1".to_owned(),
        "rediss://app:PLANTEDprobe@127.0.0.1:1".to_owned(),
        "nonsense://app:PLANTEDprobe@h".to_owned(),
    ] {
        said.ended("probe", &run(&["probe", &url, "--deadline", "300"]).await);
    }
    let signatures: Vec<&str> = signatures.iter().map(String::as_str).collect();
    let searched = said.search(&signatures);
    assert!(searched > 300_000, "only {searched} bytes were said");
    let arrived = std::fs::metadata(said.path("said-otlp")).map_or(0, |file| file.len());
    assert!(arrived > 0, "no trace was sent");
}
