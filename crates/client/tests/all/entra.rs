//! C16 with Entra ID: its endpoints are played by a transport, and Redis takes the token as the
//! password.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use azure_core::credentials::{AccessToken, Secret, TokenCredential, TokenRequestOptions};
use azure_core::http::headers::Headers;
use azure_core::http::{
    AsyncRawResponse, ClientOptions, HttpClient, Request, StatusCode, Transport,
};
use azure_identity::{ClientSecretCredential, ClientSecretCredentialOptions};
use steadfast::credentials::{CredentialsProvider, EntraId};
use steadfast::{Client, ConnectionState};
use steadfast_drill::process::Redis;

use crate::support::{cmd, ms, seen, until_state};

const OBJECT: &str = "0f0e0d0c-1111-2222-3333-444455556666";

fn token(n: u32) -> String {
    let claims = azure_core::base64::encode_url_safe(format!(r#"{{"oid":"{OBJECT}","n":{n}}}"#));
    format!("header.{claims}.signature{n}")
}

/// The token endpoint of a tenant.
#[derive(Debug, Default)]
struct Endpoint {
    asked: AtomicU32,
    down: AtomicBool,
    /// Seconds that a token lives.
    life: AtomicU32,
    garbage: AtomicBool,
}

#[async_trait::async_trait]
impl HttpClient for Endpoint {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        assert!(
            request.url().path().ends_with("/oauth2/v2.0/token"),
            "{}",
            request.url()
        );
        let n = self.asked.fetch_add(1, Relaxed);
        if self.down.load(Relaxed) {
            let body = r#"{"error":"invalid_request","error_description":"down"}"#;
            return Ok(AsyncRawResponse::from_bytes(
                StatusCode::BadRequest,
                Headers::new(),
                body,
            ));
        }
        let given = if self.garbage.load(Relaxed) {
            "opaque".to_owned()
        } else {
            token(n)
        };
        let life = self.life.load(Relaxed);
        let body =
            format!(r#"{{"access_token":"{given}","expires_in":{life},"token_type":"Bearer"}}"#);
        Ok(AsyncRawResponse::from_bytes(
            StatusCode::Ok,
            Headers::new(),
            body,
        ))
    }
}

fn provider(endpoint: &Arc<Endpoint>) -> EntraId {
    let endpoint = Arc::clone(endpoint);
    EntraId::made_by(move || {
        let transport = Transport::new(Arc::clone(&endpoint) as Arc<dyn HttpClient>);
        let client_options = ClientOptions {
            transport: Some(transport),
            ..ClientOptions::default()
        };
        let options = ClientSecretCredentialOptions { client_options };
        let secret = Secret::new("an-app-secret");
        Ok(ClientSecretCredential::new(
            "tenant",
            "client".to_owned(),
            secret,
            Some(options),
        )?)
    })
}

async fn redis_taking(tokens: std::ops::Range<u32>) -> Redis {
    let passwords: Vec<String> = tokens.map(|n| format!(">{}", token(n))).collect();
    Redis::builder()
        .acl(format!("{OBJECT} on {} ~* +@all", passwords.join(" ")))
        .start()
        .await
        .unwrap()
}

#[tokio::test]
async fn c16_entra_gives_the_object_id_and_the_token_and_renews_without_a_failed_call_at_1000_a_second()
 {
    let endpoint = Arc::new(Endpoint::default());
    endpoint.life.store(6, Relaxed);
    let redis = redis_taking(0..50).await;
    let client = Client::builder(&format!("redis://{}", redis.addr()))
        .unwrap()
        .credentials(provider(&endpoint))
        .connect()
        .await
        .unwrap();
    assert_eq!(
        client.send(&cmd("ACL WHOAMI")).await.unwrap(),
        redis::Value::BulkString(OBJECT.into())
    );
    let mut pace = tokio::time::interval(ms(1));
    let mut calls = 0;
    while seen(&client, "reauthenticated") < 1 || calls < 2000 {
        pace.tick().await;
        client.send(&cmd("INCR n")).await.unwrap();
        calls += 1;
        assert!(calls < 60_000, "never renewed");
    }
    assert_eq!(seen(&client, "lost"), 0);
    assert!(endpoint.asked.load(Relaxed) >= 2);
}

#[tokio::test]
async fn c16_entra_out_of_reach_is_a_bounded_failure_from_which_the_client_comes_back_unaided() {
    let endpoint = Arc::new(Endpoint::default());
    endpoint.life.store(3600, Relaxed);
    endpoint.down.store(true, Relaxed);
    let redis = redis_taking(0..50).await;
    let client = Client::builder(&format!("redis://{}", redis.addr()))
        .unwrap()
        .deadline(ms(300))
        .credentials(provider(&endpoint))
        .build()
        .unwrap();
    let begun = tokio::time::Instant::now();
    let error = client.send(&cmd("PING")).await.unwrap_err();
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
    assert!(!format!("{error} {error:?}").contains("an-app-secret"));
    endpoint.down.store(false, Relaxed);
    until_state(&client, ConnectionState::Ready).await;
    client.send(&cmd("PING")).await.unwrap();
}

#[tokio::test]
async fn c16_an_unreadable_token_never_signs_in_as_anyone() {
    let endpoint = Arc::new(Endpoint::default());
    endpoint.life.store(3600, Relaxed);
    endpoint.garbage.store(true, Relaxed);
    let error = provider(&endpoint)
        .credentials()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("the user is not known") && !error.contains("opaque"),
        "{error}"
    );
}

/// A credential that fails while it is told to.
#[derive(Debug)]
struct Flaky {
    down: Arc<AtomicBool>,
    given: Arc<AtomicU32>,
}

#[async_trait::async_trait]
impl TokenCredential for Flaky {
    async fn get_token(
        &self,
        _: &[&str],
        _: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        if self.down.load(Relaxed) {
            return Err(azure_core::Error::with_message(
                azure_core::error::ErrorKind::Credential,
                "down",
            ));
        }
        let n = self.given.fetch_add(1, Relaxed);
        let expires =
            azure_core::time::OffsetDateTime::now_utc() + azure_core::time::Duration::seconds(3600);
        Ok(AccessToken::new(token(n), expires))
    }
}

#[tokio::test(start_paused = true)]
async fn c16_an_identity_provider_down_for_five_minutes_is_not_noticed_and_renewal_goes_on() {
    let (down, given) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let entra = EntraId::made_by({
        let (down, given) = (Arc::clone(&down), Arc::clone(&given));
        move || {
            Ok(Arc::new(Flaky {
                down: Arc::clone(&down),
                given: Arc::clone(&given),
            }))
        }
    });
    entra.credentials().await.unwrap();
    let due = entra.renew_in().unwrap();
    assert!(
        due > Duration::from_secs(2300) && due < Duration::from_secs(3420),
        "{due:?}"
    );
    down.store(true, Relaxed);
    tokio::time::sleep(due + Duration::from_secs(5)).await;
    for _ in 0..300 {
        entra
            .credentials()
            .await
            .expect("the token that is held goes on working");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(
        entra.trouble().is_some(),
        "it is told long before it is an outage"
    );
    assert_eq!(given.load(Relaxed), 1);
    down.store(false, Relaxed);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(given.load(Relaxed), 2, "renewed without being asked");
    assert!(entra.trouble().is_none());
    // Down for good: refused once the token has ended, and back by itself.
    down.store(true, Relaxed);
    tokio::time::sleep(Duration::from_secs(3700)).await;
    entra.credentials().await.unwrap_err();
    down.store(false, Relaxed);
    tokio::time::sleep(Duration::from_secs(40)).await;
    entra.credentials().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn c16_a_credential_that_panics_is_told_and_does_not_end_the_renewal() {
    let (broken, given) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let entra = EntraId::made_by({
        let (broken, given) = (Arc::clone(&broken), Arc::clone(&given));
        move || {
            assert!(!broken.load(Relaxed), "a credential's own mistake");
            let down = Arc::new(AtomicBool::new(false));
            let given = Arc::clone(&given);
            Ok(Arc::new(Flaky { down, given }))
        }
    });
    entra.credentials().await.unwrap();
    broken.store(true, Relaxed);
    let due = entra.renew_in().unwrap();
    tokio::time::sleep(due + Duration::from_secs(5)).await;
    let trouble = entra.trouble().expect("it is told").to_string();
    assert!(trouble.contains("panicked"), "{trouble}");
    entra.credentials().await.expect("what is held still works");
    broken.store(false, Relaxed);
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert_eq!(given.load(Relaxed), 2, "it goes on");
    assert!(entra.trouble().is_none());
}
