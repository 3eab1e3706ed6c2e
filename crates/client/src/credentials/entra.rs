//! Entra ID gives tokens that live for an hour or so; an outage of the identity provider must not
//! become one of Redis. So a token is renewed long before it expires, again and again for as long
//! as it takes, and the one that is held is used to its last second.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use azure_core::credentials::{AccessToken, Secret, TokenCredential};
use azure_identity::{
    AzureCliCredential, ClientSecretCredential, ManagedIdentityCredential,
    ManagedIdentityCredentialOptions, UserAssignedId, WorkloadIdentityCredential,
};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use secrecy::{ExposeSecret, SecretString};
use steadfast_core::policy::backoff::Backoff;
use tokio::sync::watch;

use super::{Credentials, CredentialsError, CredentialsProvider};
use crate::task::Owned;

/// The name of Azure's Redis for Entra ID.
const SCOPE: &str = "https://redis.azure.com/.default";

/// The time before its expiry at which a token is renewed, at the latest.
const MARGIN: Duration = Duration::from_secs(180);

/// The time that one attempt to get a token may take.
const ATTEMPT: Duration = Duration::from_secs(30);

/// The time after which an attempt hangs where no deadline reaches it.
const HANGING: Duration = Duration::from_secs(5);

/// The interval at which live connections look for the result of a renewal that is under way.
const LOOK: Duration = Duration::from_secs(1);

type Make = dyn Fn() -> azure_core::Result<Arc<dyn TokenCredential>> + Send + Sync;

/// Tokens of Entra ID as passwords of Azure's Redis: the user name is the object id that the token
/// names, the password is the token.
///
/// A token is renewed when a third of its life is left, and no later than three minutes before its
/// end (of one that lives for less than six minutes: after half of it); after a failure again, with
/// pauses of up to 30 s, for ever. Metrics: `steadfast_credentials_refresh_total` by `outcome`, and
/// `steadfast_credentials_expiry_seconds`, which tells how long the token still lives.
///
/// ```no_run
/// use steadfast::credentials::EntraId;
///
/// # fn main() -> Result<(), steadfast::ConfigError> {
/// let identity = EntraId::managed_identity(None);
/// let builder = steadfast::Client::builder("redis://name.redis.cache.windows.net:6379")?;
/// let builder = builder.credentials(identity);
/// # Ok(()) }
/// ```
pub struct EntraId {
    shared: Arc<TokenCache>,
}

struct TokenCache {
    make: Box<Make>,
    scope: String,
    state: Mutex<TokenState>,
    /// Says that `state` has changed.
    changed: watch::Sender<u64>,
    backoff: Backoff,
}

#[derive(Default)]
struct TokenState {
    held: Option<Held>,
    failed: Option<CredentialsError>,
    /// The task that keeps the token. It ends with the runtime of the call that started it.
    keeper: Option<Owned<()>>,
}

#[derive(Clone)]
struct Held {
    credentials: Credentials,
    renew_at: Moment,
    expires_at: Moment,
}

/// A moment to come, on the monotonic clock and by the calendar, whichever comes first: the former
/// may stand still while a machine is suspended, and the latter be set back.
#[derive(Clone, Copy)]
struct Moment {
    monotonic: Instant,
    calendar: SystemTime,
}

impl Moment {
    fn now() -> Self {
        Self {
            monotonic: tokio::time::Instant::now().into_std(),
            calendar: calendar(),
        }
    }

    fn after(self, time: Duration) -> Self {
        Self {
            monotonic: self.monotonic + time,
            calendar: self.calendar + time,
        }
    }

    /// Returns the time from `now` until then; zero once it has come.
    fn left(self, now: Self) -> Duration {
        let monotonic = self.monotonic.saturating_duration_since(now.monotonic);
        let calendar = self.calendar.duration_since(now.calendar);
        monotonic.min(calendar.unwrap_or_default())
    }
}

impl EntraId {
    /// The identity that Azure gives to the machine or the container; `client_id` if it was given
    /// several.
    pub fn managed_identity(client_id: Option<&str>) -> Self {
        let client_id = client_id.map(str::to_owned);
        Self::made_by(move || {
            let options = ManagedIdentityCredentialOptions {
                user_assigned_id: client_id.clone().map(UserAssignedId::ClientId),
                ..ManagedIdentityCredentialOptions::default()
            };
            Ok(ManagedIdentityCredential::new(Some(options))?)
        })
    }

    /// The identity of a Kubernetes service account, as the webhook of Azure sets it up in the
    /// environment.
    pub fn workload_identity() -> Self {
        Self::made_by(|| Ok(WorkloadIdentityCredential::new(None)?))
    }

    /// An application with a secret.
    pub fn client_secret(tenant: &str, client_id: &str, secret: SecretString) -> Self {
        let (tenant, client_id) = (tenant.to_owned(), client_id.to_owned());
        Self::made_by(move || {
            let secret = Secret::new(secret.expose_secret().to_owned());
            Ok(ClientSecretCredential::new(
                &tenant,
                client_id.clone(),
                secret,
                None,
            )?)
        })
    }

    /// Uses the account that is signed in to the `az` program; for development.
    pub fn azure_cli() -> Self {
        Self::made_by(|| Ok(AzureCliCredential::new(None)?))
    }

    /// Any credential of Azure's crates, with a transport of the program's own if need be. It is
    /// made anew for each renewal, because one that is kept answers from its own memory until five
    /// minutes before the end, which is too late to sit out an outage.
    pub fn made_by<F>(make: F) -> Self
    where
        F: Fn() -> azure_core::Result<Arc<dyn TokenCredential>> + Send + Sync + 'static,
    {
        Self {
            shared: Arc::new(TokenCache {
                make: Box::new(make),
                scope: SCOPE.to_owned(),
                state: Mutex::default(),
                changed: watch::Sender::new(0),
                backoff: Backoff::full_jitter(Duration::from_secs(1), Duration::from_secs(30)),
            }),
        }
    }

    /// Sets another scope, for a cloud of its own.
    pub fn scope(mut self, scope: &str) -> Self {
        if let Some(shared) = Arc::get_mut(&mut self.shared) {
            scope.clone_into(&mut shared.scope);
        }
        self
    }

    /// Starts the task that keeps the token, with the first call, and with the next one after its
    /// runtime has ended.
    fn keep(&self) {
        let mut state = self.shared.state.lock();
        if state.keeper.as_ref().is_none_or(Owned::is_finished) {
            let keeper = tokio::spawn(keep(Arc::downgrade(&self.shared)));
            state.keeper = Some(Owned::new(keeper));
        }
    }

    async fn current(&self) -> Result<Credentials, CredentialsError> {
        let mut changed = self.shared.changed.subscribe();
        self.keep();
        loop {
            {
                let state = self.shared.state.lock();
                match (&state.held, &state.failed) {
                    (Some(held), _) if !held.expires_at.left(Moment::now()).is_zero() => {
                        return Ok(held.credentials.clone());
                    }
                    (_, Some(error)) => return Err(error.clone()),
                    _ => {}
                }
            }
            if changed.changed().await.is_err() {
                return Err(CredentialsError::new(
                    "the task that renews tokens has ended",
                ));
            }
        }
    }
}

impl fmt::Debug for EntraId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EntraId")
            .field("scope", &self.shared.scope)
            .finish_non_exhaustive()
    }
}

impl CredentialsProvider for EntraId {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, CredentialsError>> {
        Box::pin(self.current())
    }

    fn renew_in(&self) -> Option<Duration> {
        let state = self.shared.state.lock();
        let due = state
            .held
            .as_ref()
            .map(|held| held.renew_at.left(Moment::now()));
        Some(due.unwrap_or_default().max(LOOK))
    }

    fn trouble(&self) -> Option<CredentialsError> {
        self.shared.state.lock().failed.clone()
    }
}

/// Renews for ever; ends when nobody has the provider any more.
async fn keep(shared: Weak<TokenCache>) {
    crate::metrics::begin_refreshes();
    let mut failures = 0;
    #[expect(
        clippy::disallowed_methods,
        reason = "pauses of different processes must differ"
    )]
    let mut rng = fastrand::Rng::new();
    let mut running = None;
    loop {
        let Some(provider) = shared.upgrade() else {
            return;
        };
        let outcome = attempt(&provider, &mut running).await;
        failures = provider.take_up(outcome, failures);
        let pause = provider.pause(failures, &mut rng);
        drop(provider);
        let until = tokio::time::Instant::now() + pause;
        while tokio::time::Instant::now() < until {
            let Some(provider) = shared.upgrade() else {
                return;
            };
            provider.tell_expiry();
            drop(provider);
            let step = tokio::time::Instant::now() + Duration::from_secs(10);
            tokio::time::sleep_until(until.min(step)).await;
            // The machine may have been suspended, for which that clock stood still.
            let is_due = |provider: Arc<TokenCache>| provider.pause(0, &mut rng) <= LOOK;
            if failures == 0 && shared.upgrade().is_some_and(is_due) {
                break;
            }
        }
    }
}

/// Makes one attempt, in a task of its own: a credential that panics, or keeps its thread, ends an
/// attempt and not the renewal.
async fn attempt(
    provider: &Arc<TokenCache>,
    running: &mut Option<Owned<Result<Held, CredentialsError>>>,
) -> Result<Held, CredentialsError> {
    let task = running.get_or_insert_with(|| {
        let provider = Arc::clone(provider);
        Owned::new(tokio::spawn(async move { provider.fetch().await }))
    });
    match tokio::time::timeout(ATTEMPT + HANGING, &mut *task).await {
        Ok(ended) => {
            *running = None;
            ended.unwrap_or_else(|_| {
                let why = "the credential that asks Entra ID panicked";
                Err(CredentialsError::new(why))
            })
        }
        // It is waited for again: another beside it would keep another thread.
        Err(_) => Err(CredentialsError::new(
            "the credential that asks Entra ID keeps its thread",
        )),
    }
}

impl TokenCache {
    async fn fetch(&self) -> Result<Held, CredentialsError> {
        let refused = |error: azure_core::Error| {
            CredentialsError::new(format!("Entra ID gave no token: {error}"))
        };
        let credential = (self.make)().map_err(refused)?;
        let scopes = [self.scope.as_str()];
        let token = tokio::time::timeout(ATTEMPT, credential.get_token(&scopes, None));
        let token = token.await.map_err(|_| {
            CredentialsError::new(format!(
                "Entra ID gave no token within {} s",
                ATTEMPT.as_secs()
            ))
        })?;
        held(&token.map_err(refused)?)
    }

    /// Keeps what has come, and tells how many attempts have failed in a row.
    fn take_up(&self, outcome: Result<Held, CredentialsError>, failures: u32) -> u32 {
        let failures = match outcome {
            Ok(held) => {
                crate::metrics::count_refresh("success");
                let mut state = self.state.lock();
                state.held = Some(held);
                state.failed = None;
                0
            }
            Err(error) => {
                crate::metrics::count_refresh("failure");
                // Without the lock, which every handshake asks for.
                tracing::warn!(%error, "the token for Redis could not be renewed; it is tried again");
                self.state.lock().failed = Some(error);
                failures.saturating_add(1)
            }
        };
        self.changed.send_modify(|changes| *changes += 1);
        self.tell_expiry();
        failures
    }

    fn pause(&self, failures: u32, rng: &mut fastrand::Rng) -> Duration {
        if failures > 0 {
            return self.backoff.pause(failures, rng);
        }
        let state = self.state.lock();
        let due = state.held.as_ref().map(|held| held.renew_at);
        due.map_or(LOOK, |due| due.left(Moment::now())).max(LOOK)
    }

    fn tell_expiry(&self) {
        if let Some(held) = &self.state.lock().held {
            let left = held.expires_at.left(Moment::now());
            crate::metrics::credentials_expire_in(left);
        }
    }
}

/// The token with the user that it is for, and its times on our own clock.
fn held(token: &AccessToken) -> Result<Held, CredentialsError> {
    let user = object_id(token.token.secret())?;
    let life = life_of(token);
    if life.is_zero() {
        return Err(CredentialsError::new(
            "Entra ID gave a token that has expired already; compare the clocks",
        ));
    }
    let left = (life / 3).max(MARGIN).min(life / 2);
    let now = Moment::now();
    Ok(Held {
        credentials: Credentials::new(user, token.token.secret()),
        renew_at: now.after(life - left),
        expires_at: now.after(life),
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a token says by the calendar when it expires"
)]
fn calendar() -> SystemTime {
    SystemTime::now()
}

fn life_of(token: &AccessToken) -> Duration {
    let since_1970 = calendar()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let expires = u64::try_from(token.expires_on.unix_timestamp()).unwrap_or_default();
    // A day is longer than any token lives; what claims more is not believed.
    Duration::from_secs(expires)
        .saturating_sub(since_1970)
        .min(Duration::from_secs(86_400))
}

/// The claim `oid`. The signature is for Redis to check; to us the token is only a password that
/// says whose it is. One that cannot be read is an error: without a name it would be tried as the
/// user `default`.
fn object_id(token: &str) -> Result<String, CredentialsError> {
    let unreadable = |what: &str| {
        CredentialsError::new(format!(
            "the token of Entra ID {what}: without it the user is not known"
        ))
    };
    let mut parts = token.split('.');
    let (Some(_), Some(claims), Some(_), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(unreadable("is not a JWT"));
    };
    let claims = azure_core::base64::decode_url_safe(claims.trim_end_matches('='))
        .map_err(|_| unreadable("cannot be decoded"))?;
    let claims: serde_json::Value =
        serde_json::from_slice(&claims).map_err(|_| unreadable("cannot be decoded"))?;
    match claims["oid"].as_str() {
        Some(oid)
            if !oid.is_empty() && oid.len() <= 128 && oid.bytes().all(|b| b.is_ascii_graphic()) =>
        {
            Ok(oid.to_owned())
        }
        _ => Err(unreadable("names no object id (oid)")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::{AtomicU32, Ordering};

    use azure_core::credentials::TokenRequestOptions;
    use azure_core::time::OffsetDateTime;

    use super::*;

    /// Gives tokens that live for so many seconds, and counts them.
    #[derive(Debug)]
    struct Issuer {
        life: i64,
        given: AtomicU32,
    }

    #[async_trait::async_trait]
    impl TokenCredential for Issuer {
        async fn get_token(
            &self,
            _scopes: &[&str],
            _options: Option<TokenRequestOptions<'_>>,
        ) -> azure_core::Result<AccessToken> {
            let n = self.given.fetch_add(1, Ordering::Relaxed);
            let claims = format!(r#"{{"oid":"a-b-c","n":{n}}}"#);
            let claims = azure_core::base64::encode_url_safe(claims);
            let now = calendar().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let expires = now.as_secs() as i64 + self.life;
            let expires = OffsetDateTime::from_unix_timestamp(expires).unwrap();
            Ok(AccessToken::new(format!("h.{claims}.s"), expires))
        }
    }

    #[test]
    fn c16_a_token_is_renewed_again_in_another_runtime_once_that_of_the_first_call_has_ended() {
        let issuer = Arc::new(Issuer {
            life: 4,
            given: AtomicU32::new(0),
        });
        let made = Arc::clone(&issuer);
        let provider = EntraId::made_by(move || Ok(Arc::clone(&made) as _));
        let run = |calls: u32| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            runtime.block_on(async {
                provider.credentials().await.unwrap();
                while issuer.given.load(Ordering::Relaxed) < calls {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            });
        };
        run(1);
        let renewed = std::thread::scope(|scope| {
            let second = scope.spawn(|| run(4));
            (0..3_000).any(|_| {
                std::thread::park_timeout(Duration::from_millis(10));
                second.is_finished() || issuer.given.load(Ordering::Relaxed) >= 4
            }) || {
                // So that the test ends, too.
                issuer.given.store(4, Ordering::Relaxed);
                false
            }
        });
        assert!(renewed, "the token is renewed no more");
    }

    #[test]
    fn c14_a_renewal_that_fails_is_told_of_without_the_lock_that_handshakes_ask_for() {
        let provider = EntraId::made_by(|| Ok(AzureCliCredential::new(None)?));
        let free = Arc::new(Mutex::new(Vec::new()));
        let (of, told) = (Arc::clone(&provider.shared), Arc::clone(&free));
        let _listens = crate::event::listener::listen(move || {
            let is_free = of.state.try_lock().is_some();
            told.lock().push(is_free);
        });
        let refused = CredentialsError::new("Entra ID gave no token");
        assert_eq!(provider.shared.take_up(Err(refused), 0), 1);
        assert!(provider.trouble().is_some());
        assert_eq!(*free.lock(), [true]);
    }

    #[test]
    fn c16_a_token_expires_by_the_calendar_too_while_a_suspended_machine_counts_no_time() {
        let hour = Duration::from_secs(3_600);
        let begun = Moment::now();
        let expires = begun.after(hour);
        assert_eq!(expires.left(begun), hour);
        let suspended = Moment {
            calendar: begun.calendar + 2 * hour,
            ..begun
        };
        assert_eq!(expires.left(suspended), Duration::ZERO);
        let set_back = Moment {
            monotonic: begun.monotonic + 2 * hour,
            calendar: begun.calendar - hour,
        };
        assert_eq!(expires.left(set_back), Duration::ZERO);
    }

    #[test]
    fn c16_a_token_that_cannot_be_read_is_an_error_and_never_the_default_user() {
        let token = |claims: &str| format!("h.{}.s", azure_core::base64::encode_url_safe(claims));
        assert_eq!(object_id(&token(r#"{"oid":"a-b-c"}"#)).unwrap(), "a-b-c");
        for bad in [
            "",
            "x",
            "a.b",
            "a.b.c",
            "a.b.c.d",
            "...",
            &token("{}"),
            &token("[]"),
            &token("not json"),
            &token(r#"{"oid":""}"#),
            &token(r#"{"oid":7}"#),
            &token(r#"{"oid":"a b"}"#),
            &token(r#"{"sub":"x"}"#),
        ] {
            let error = object_id(bad).unwrap_err().to_string();
            assert!(error.contains("the user is not known"), "{bad}: {error}");
        }
    }
}
