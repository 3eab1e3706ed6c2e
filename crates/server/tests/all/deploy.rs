//! What is under `deploy/` says things that the service says too: its file is one that the service
//! takes, and whoever stops it waits for as long as it may need.

use std::path::PathBuf;
use std::time::Duration;

use steadfast_server::Config;
use steadfast_server::config::Sources;

fn read(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy")
        .join(path);
    std::fs::read_to_string(path).unwrap()
}

/// The text below `name: |`, without its indent.
fn block(yaml: &str, name: &str) -> String {
    let mut lines = yaml
        .lines()
        .skip_while(|line| line.trim() != format!("{name}: |"));
    let indent = lines.next().unwrap().len() - name.len() - 3 + 2;
    let inside = lines.take_while(|line| line.is_empty() || line.starts_with(&" ".repeat(indent)));
    let text: Vec<&str> = inside
        .map(|line| line.get(indent..).unwrap_or(""))
        .collect();
    text.join("\n")
}

fn after<'a>(text: &'a str, words: &str) -> &'a str {
    let line = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(words));
    line.unwrap_or_else(|| panic!("{words:?} is not there"))
        .trim()
}

fn needed_to_stop(config: &Config) -> Duration {
    // The last: to close what the service stands on.
    config.server.drain_delay + config.server.drain_limit + Duration::from_secs(5)
}

#[test]
fn s9_kubernetes_gets_a_file_that_is_taken_and_waits_for_the_drain() {
    let yaml = read("kubernetes/steadfast.yaml");
    let variables = [
        ("REDIS_URL", "rediss://user:password@redis.example:6380"),
        (
            "DATABASE_URL",
            "postgres://user:password@postgres.example/app",
        ),
    ];
    let variables = variables.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let sources = Sources::new()
        .text("steadfast.toml", &block(&yaml, "steadfast.toml"))
        .environment(variables);
    let config = Config::load(&sources).unwrap_or_else(|error| panic!("{error}"));
    assert!(config.queries.contains_key("user_by_id"));
    assert!(!config.server.listen.ip().is_loopback() && config.auth.is_some());
    let port = config.server.listen.port();
    assert!(yaml.contains(&format!("containerPort: {port} }}")));
    let grace: u64 = after(&yaml, "terminationGracePeriodSeconds:")
        .parse()
        .unwrap();
    assert!(Duration::from_secs(grace) > needed_to_stop(&config));
    // A pod must have heard that it is not ready before it stops taking calls.
    let period: u64 = yaml
        .split("readinessProbe:")
        .nth(1)
        .map(|probe| after(probe, "periodSeconds:").parse().unwrap())
        .unwrap();
    assert!(Duration::from_secs(period) < config.server.drain_delay);
}

#[test]
fn s9_systemd_and_the_container_wait_for_the_drain() {
    let config = Config::load(&Sources::new()).unwrap();
    let unit = read("systemd/steadfast.service");
    let patience = after(&unit, "TimeoutStopSec=").trim_end_matches('s');
    let patience = Duration::from_secs(patience.parse().unwrap());
    assert!(patience > needed_to_stop(&config));
    assert_eq!(after(&unit, "RestartPreventExitStatus="), "2");
    let image = read("Dockerfile");
    assert_eq!(
        after(&image, "EXPOSE"),
        config.server.listen.port().to_string()
    );
    assert_eq!(after(&image, "STOPSIGNAL"), "SIGTERM");
}

#[test]
fn s1_the_service_of_the_readme_is_one_that_starts() {
    let readme = read("../README.md");
    let (_, block) = readme.split_once("```toml\n").unwrap();
    let (settings, _) = block.split_once("```").unwrap();
    let config = Config::load(&Sources::new().text("README.md", settings)).unwrap();
    assert!(config.queries.contains_key("user"));
}

/// What promtool says, which is in Debian's package `prometheus`, and whether all is well.
fn promtool(arguments: &[&str], input: &str) -> (bool, String) {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../deploy/prometheus"
        ))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool: install Debian's package prometheus, as `make test` does");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let done = child.wait_with_output().unwrap();
    let said = [done.stdout, done.stderr].concat();
    (done.status.success(), String::from_utf8(said).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s4_prometheus_takes_the_rules_and_the_metrics_and_fires_at_a_first_rise() {
    let service = crate::harness::Service::demo().await;
    service.get("/v1/queries/search_users?q=hopper").await;
    let exported = service.get("/metrics").await.text();
    for (arguments, input) in [
        (&["check", "rules", "rules.yml"][..], ""),
        (&["test", "rules", "rules_test.yml"], ""),
        (&["check", "metrics"], exported.as_str()),
    ] {
        let (well, said) = promtool(arguments, input);
        assert!(well, "promtool {}: {said}", arguments.join(" "));
    }
}
