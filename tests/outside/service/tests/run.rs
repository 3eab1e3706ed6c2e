//! The application on a real Redis: its own routes, ours below `/data`, and an end by Ctrl-C.

use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use secrecy::ExposeSecret;
use steadfast_drill::process::{Redis, Scratch};
use steadfast_server::Config;
use steadfast_server::auth::{Role, TokenSpec, issue};
use steadfast_server::config::Sources;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};

/// The program, what else it says, and where it listens.
async fn start(arguments: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>, SocketAddr) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_service"));
    program
        .args(arguments)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true);
    let mut program = program.spawn().unwrap();
    let mut said = BufReader::new(program.stdout.take().unwrap()).lines();
    let address = said.next_line().await.unwrap().unwrap().parse().unwrap();
    (program, said, address)
}

async fn get(address: SocketAddr, path: &str) -> String {
    get_with(address, path, "").await
}

async fn get_with(address: SocketAddr, path: &str, header: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n{header}connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn c21_a_program_with_a_router_of_its_own_puts_the_service_below_a_path() {
    let redis = Redis::start().await.unwrap();
    let folder = Scratch::new("steadfast-outside-").unwrap();
    let database = format!("sqlite://{}/data.db", folder.path().display());
    let (mut program, mut said, address) = start(&[&redis.url(), &database]).await;

    assert!(get(address, "/").await.ends_with("a page of our own\n"));
    assert!(
        get(address, "/elsewhere")
            .await
            .ends_with("nothing of ours\n")
    );
    let asked = get(address, "/double").await;
    assert!(asked.contains(r#""rows":[{"twice":42}]"#), "{asked}");
    let read = get(address, "/data/v1/queries/double?n=4").await;
    assert!(read.contains(r#""rows":[{"twice":8}]"#), "{read}");
    let ready = get(address, "/data/health/ready").await;
    assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
    let drills = get(address, "/data/v1/drills").await;
    assert!(drills.contains(r#""enabled":false"#), "{drills}");
    let unknown = get(address, "/data/v1/nothing").await;
    assert!(
        unknown.starts_with("HTTP/1.1 404") && unknown.contains("there is nothing at this address"),
        "{unknown}"
    );

    let pid = program.id().unwrap().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .await
            .unwrap()
            .success()
    );
    assert_eq!(said.next_line().await.unwrap().as_deref(), Some("closed"));
    assert!(program.wait().await.unwrap().success());
}

/// `make check` runs it where jsonwebtoken was made ready for two cryptographies, too.
#[tokio::test]
async fn c21_tokens_are_signed_and_believed_whatever_cryptography_others_have_chosen() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    let text = format!(
        "namespace = \"x\"\n[auth]\nissuer = \"us\"\naudience = \"us\"\n\
         [auth.keys.own]\nalgorithm = \"HS256\"\nsecret = \"{SECRET}\"\n"
    );
    let config = Config::load(&Sources::new().text("test", &text)).unwrap();
    let now = UNIX_EPOCH.elapsed().unwrap().as_secs();
    let spec = TokenSpec {
        subject: "ada",
        role: Role::Viewer,
        lifetime: Duration::from_secs(600),
        key: None,
        private_key: None,
        now,
    };
    let token = issue(config.auth.as_ref().unwrap(), &spec).unwrap();
    let bearer = format!("authorization: Bearer {}\r\n", token.expose_secret());

    let folder = Scratch::new("steadfast-outside-").unwrap();
    let database = format!("sqlite://{}", folder.path().join("data.db").display());
    let (_program, _, address) = start(&["redis://127.0.0.1:1", &database, SECRET]).await;
    let path = "/data/v1/queries/double?n=4";
    let read = get(address, path).await;
    assert!(read.starts_with("HTTP/1.1 401"), "{read}");
    let read = get_with(address, path, &bearer).await;
    assert!(read.contains(r#""rows":[{"twice":8}]"#), "{read}");
}
