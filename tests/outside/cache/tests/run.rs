//! The planets on a real PostgreSQL.

use steadfast_drill::process::Postgres;
use tokio::process::Command;

#[tokio::test]
async fn c21_a_program_with_the_cache_and_one_database_compiles_no_other() {
    let postgres = Postgres::start().await.unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_cache"))
        .arg(postgres.url())
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    let complaint = String::from_utf8_lossy(&ran.stderr);
    let expected = [
        r#"Some(Planet { name: "Mars", moons: 1 }) from database"#,
        r#"Some(Planet { name: "Mars", moons: 1 }) from memory"#,
        r#"Some(Planet { name: "Mars", moons: 2 }) from database"#,
    ];
    let lines: Vec<_> = said
        .lines()
        .rev()
        .take(3)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect();
    assert_eq!((&lines[..], &*complaint), (&expected[..], ""), "{said}");
}
