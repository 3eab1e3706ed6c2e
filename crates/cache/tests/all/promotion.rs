//! K8 through a failover: what a promoted replica holds may be older than what its primary was
//! told.

use std::time::Duration;

use steadfast::{Client, ConnectionState, EventKind};
use steadfast_cache::{Target, Tx};
use steadfast_drill::process::Watched;

use crate::site::{all_is_applied, eventually, plain, read_item, set_item, sqlite};

#[tokio::test]
async fn k8_a_replica_that_was_promoted_without_an_invalidation_is_not_believed() {
    // A replica that has not heard of its primary for ten times as long is not promoted.
    let lines = ["sentinel down-after-milliseconds main 1000"];
    let watched = Watched::start_with(|server| server, &lines).await.unwrap();
    let (database, _folder) = sqlite().await;
    let client = || async {
        let builder = Client::builder(&watched.url()).unwrap();
        let patient = builder.deadline(Duration::from_secs(5));
        patient.connect().await.unwrap()
    };
    let redis = client().await;
    let first = plain(&database).redis(redis.clone());
    let first = first.build().await.unwrap();
    let write = |version| {
        let first = &first;
        async move {
            let work = async |tx: &mut Tx| set_item(tx, 7, version).await;
            let write = first.write(work).invalidates([Target::key("item:7")]);
            write.commit().await.unwrap()
        }
    };
    write(1).await;
    all_is_applied(&first).await;
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("1"));
    eventually("both servers have it", || async {
        let epoch = first.status().redis.unwrap().epoch.unwrap_or_default();
        let key = format!("test:v:{epoch}:{{item:7}}");
        let found = watched.data[1].command(&["EXISTS", &key]).await.unwrap();
        found == redis::Value::Int(1)
    })
    .await;
    // From here on the replica hears nothing any more.
    for words in [
        "ACL SETUSER default -psync -sync",
        "CLIENT KILL TYPE replica",
    ] {
        let words: Vec<_> = words.split(' ').collect();
        watched.data[0].command(&words).await.unwrap();
    }
    write(2).await;
    all_is_applied(&first).await;
    watched.data[0].kill().await;
    eventually("the client serves from the other", || async {
        let failed_over = |kind| matches!(kind, EventKind::FailedOver { .. });
        let mut history = redis.history().into_iter();
        redis.status().state == ConnectionState::Ready
            && history.any(|event| failed_over(event.kind))
    })
    .await;
    let second = plain(&database).redis(client().await);
    let second = second.build().await.unwrap();
    assert_eq!(read_item(&second, 7).await.as_deref(), Some("2"));
    assert_eq!(read_item(&first, 7).await.as_deref(), Some("2"));
    let epochs = first.status().counts.epochs + second.status().counts.epochs;
    assert!(epochs >= 1, "what it holds was given up");
}
