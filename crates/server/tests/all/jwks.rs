//! Keys that an identity provider publishes, rotates and withdraws.

use std::sync::atomic::Ordering::Relaxed;

use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value as Json, json};
use steadfast_drill::waiting::eventually;

use crate::guarded::*;

#[tokio::test]
async fn s6_a_key_that_rotates_in_is_taken_at_once_and_one_that_rotates_out_is_not() {
    let (first, second) = (ec(), ec());
    let provider = Provider::start(published(&[("one", Algorithm::ES256, &first)])).await;
    let auth = base(&format!(
        "jwks = \"{}\"\njwks_cooldown = \"1ms\"\n",
        provider.url
    ));
    let guarded = Guarded::with(&auth).await;
    let old = signed(Algorithm::ES256, "one", &claims(), &first);
    let new = signed(Algorithm::ES256, "two", &claims(), &second);
    assert_eq!(guarded.status_with(&old).await.status, 200);
    assert_eq!(
        guarded.status_with(&new).await.status,
        401,
        "not published yet"
    );
    *provider.document.lock() = published(&[("two", Algorithm::ES256, &second)]);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    assert_eq!(
        guarded.status_with(&new).await.status,
        200,
        "read again for a name not known"
    );
    assert_eq!(
        guarded.status_with(&old).await.status,
        401,
        "gone from the set"
    );
    // A broken document leaves the last good one in force.
    *provider.document.lock() = "{\"keys\": 7}".to_owned();
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    assert_eq!(guarded.status_with(&old).await.status, 401);
    assert_eq!(guarded.status_with(&new).await.status, 200);
}

#[tokio::test]
async fn s6_each_key_of_a_set_stands_for_itself_and_an_empty_set_withdraws_all() {
    let key = ec();
    let good = signed(Algorithm::ES256, "one", &claims(), &key);
    let mut set: Json =
        serde_json::from_str(&published(&[("one", Algorithm::ES256, &key)])).unwrap();
    let keys = set["keys"].as_array_mut().unwrap();
    for odd in [
        json!({"kty": "EC", "kid": 7, "crv": "P-256", "x": "AA", "y": "AA"}),
        json!(null),
        json!("key"),
        json!({"kty": "AKP", "kid": "new"}),
        json!({"kty": "RSA", "kid": "r", "n": [], "e": "AQAB", "use": 1}),
    ] {
        keys.insert(0, odd);
    }
    let provider = Provider::start(set.to_string()).await;
    let auth = base(&format!(
        "jwks = \"{}\"\njwks_cooldown = \"1ms\"\njwks_refresh = \"1ms\"\n",
        provider.url
    ));
    let guarded = Guarded::with(&auth).await;
    assert_eq!(guarded.status_with(&good).await.status, 200);
    *provider.document.lock() = "{\"keys\": []}".to_owned();
    eventually("an empty set withdraws its keys", async || {
        guarded.status_with(&good).await.status == 401
    })
    .await;
}

#[tokio::test]
async fn s6_tokens_with_invented_keys_cause_no_flood_of_look_ups() {
    let key = ec();
    let provider = Provider::start(published(&[("one", Algorithm::ES256, &key)])).await;
    let guarded = Guarded::with(&base(&format!(
        "jwks = \"{}\"\njwks_cooldown = \"1m\"\n",
        provider.url
    )))
    .await;
    let good = signed(Algorithm::ES256, "one", &claims(), &key);
    assert_eq!(guarded.status_with(&good).await.status, 200);
    for n in 0..200 {
        let invented = signed(Algorithm::ES256, &format!("invented-{n}"), &claims(), &key);
        assert_eq!(guarded.status_with(&invented).await.status, 401);
    }
    let asked = provider.asked.load(Relaxed);
    assert!(asked <= 2, "the provider was asked {asked} times");
    assert_eq!(guarded.status_with(&good).await.status, 200);
}

#[tokio::test]
async fn s6_a_caller_that_hangs_up_does_not_keep_the_keys_from_being_read_nor_health_from_answering()
 {
    let (first, second) = (ec(), ec());
    let provider = Provider::start(published(&[("one", Algorithm::ES256, &first)])).await;
    let auth = base(&format!(
        "jwks = \"{}\"\njwks_cooldown = \"1500ms\"\n",
        provider.url
    ));
    let guarded = Guarded::with(&auth).await;
    let old = signed(Algorithm::ES256, "one", &claims(), &first);
    let new = signed(Algorithm::ES256, "two", &claims(), &second);
    assert_eq!(guarded.status_with(&old).await.status, 200);
    *provider.document.lock() = published(&[("two", Algorithm::ES256, &second)]);
    provider.delay.store(400, Relaxed);
    tokio::time::sleep(std::time::Duration::from_millis(1600)).await;
    let asked = provider.asked.load(Relaxed);
    // Health asks nobody, whatever it is shown.
    let bearer = format!("Bearer {new}");
    guarded.service.ready().await;
    let health = guarded
        .service
        .get_with("/health", &[("authorization", &bearer)])
        .await;
    assert_eq!(health.status, 200);
    assert_eq!(
        provider.asked.load(Relaxed),
        asked,
        "health waited for the identity provider"
    );
    hang_up(
        &guarded,
        &format!("GET /v1/status HTTP/1.1\r\nauthorization: {bearer}"),
        "",
        || provider.asked.load(Relaxed) == asked + 1,
    )
    .await;
    tokio::time::sleep(std::time::Duration::from_millis(600)).await;
    assert_eq!(
        guarded.status_with(&new).await.status,
        200,
        "the reading was given up with its caller"
    );
    assert_eq!(provider.asked.load(Relaxed), asked + 1);
}

#[tokio::test]
async fn s6_a_jwks_that_floods_or_lies_gives_nobody_a_key() {
    let key = ec();
    let good = signed(Algorithm::ES256, "one", &claims(), &key);
    let secret = json!({"keys": [{"kty": "oct", "kid": "one", "alg": "HS256", "k": base64url(SECRET.as_bytes())}]});
    let encryption = published(&[("one", Algorithm::ES256, &key)])
        .replacen('{', "{\"x\":0,", 1)
        .replace("\"kid\"", "\"use\":\"enc\",\"kid\"");
    let flood = format!("{{\"keys\":[{}]}}", "{\"kty\":\"EC\"},".repeat(1 << 16));
    for document in [
        secret.to_string(),
        encryption,
        flood,
        "[".repeat(100_000),
        String::new(),
    ] {
        let provider = Provider::start(document).await;
        let guarded = Guarded::with(&base(&format!("jwks = \"{}\"\n", provider.url))).await;
        for token in [
            &good,
            &signed(
                Algorithm::HS256,
                "one",
                &claims(),
                &EncodingKey::from_secret(SECRET.as_bytes()),
            ),
        ] {
            let reply = guarded.status_with(token).await;
            assert_eq!(reply.status, 503, "there is no key to check it with");
            assert_ne!(reply.header("retry-after"), "");
        }
    }
}
