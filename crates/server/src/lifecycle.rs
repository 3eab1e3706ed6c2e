//! The signals of the outside: end (SIGTERM, SIGINT), end now (the same again), read the
//! configuration again (SIGHUP). A bad file changes nothing and is complained about loudly: a
//! running service with last week's settings is worth more than none with this week's.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::app::App;
use crate::certificates::Certificates;
use crate::config::{Config, Sources};
use crate::observe::Observations;
use crate::reload::Reload;
use crate::serve::{Served, serve};
use crate::shutdown::Shutdown;

/// The time that closing everything may take. Whatever is left then dies with the process.
const CLOSING_LIMIT: Duration = Duration::from_secs(5);

/// The time that reading the files again may take before it is told.
const READING_LIMIT: Duration = Duration::from_secs(10);

/// Serves until a signal says otherwise: the first SIGTERM or SIGINT drains, the second ends at
/// once, SIGHUP reads `sources` again. Without sources there is nothing to read, and SIGHUP ends as
/// SIGTERM does: the terminal is gone.
///
/// The app is closed when it returns, unless that took too long or a signal cut it short (see
/// [`Signals::see_out`]).
pub async fn run(
    listener: TcpListener,
    app: App,
    sources: Option<Sources>,
    signals: &mut Signals,
) -> Served {
    let shutdown = Shutdown::new();
    let hung_up = sources.is_some().then(|| Arc::new(Notify::new()));
    let mut reloads = JoinSet::new();
    if let (Some(hung_up), Some(sources)) = (&hung_up, sources) {
        let reloading = Reloading {
            sources,
            reload: app.part(),
            observations: app.part(),
            certificates: app.certificates(),
        };
        reloads.spawn(reloading.at(Arc::clone(hung_up)));
    }
    let serving = serve(listener, app.clone(), shutdown.clone());
    tokio::pin!(serving);
    let served = loop {
        tokio::select! {
            served = &mut serving => break served,
            heard = signals.next() => match (heard, &hung_up) {
                (Signalled::HangUp, Some(hung_up)) => hung_up.notify_one(),
                _ if shutdown.has_begun() => shutdown.force(),
                _ => {
                    tracing::info!("ending: not ready from now on, again to end at once");
                    shutdown.begin();
                }
            },
        }
    };
    drop(reloads);
    if served == Served::Forced || !signals.see_out(app.close()).await {
        return Served::Forced;
    }
    served
}

/// Reads the configuration again when it is told to, beside the service: neither callers nor
/// signals wait for a file system that hangs.
struct Reloading {
    sources: Sources,
    reload: Arc<Reload>,
    observations: Arc<Observations>,
    certificates: Option<Arc<Certificates>>,
}

impl Reloading {
    /// Reloads each time that it is told to, one after the other, and once more if it was told
    /// meanwhile. Beside the service: neither callers nor signals wait for a file system that
    /// hangs.
    async fn at(self, hung_up: Arc<Notify>) {
        loop {
            hung_up.notified().await;
            let mut reload = std::pin::pin!(self.read_again());
            if tokio::time::timeout(READING_LIMIT, &mut reload)
                .await
                .is_err()
            {
                let cause = format!(
                    "its files have not been read within {} s; the old one stays in force until they are",
                    READING_LIMIT.as_secs()
                );
                tracing::error!("the configuration cannot be read again yet: {cause}");
                self.observations
                    .feed
                    .tell("reload_late", serde_json::json!({ "cause": cause }));
                reload.await;
            }
        }
    }

    async fn read_again(&self) {
        let feed = &self.observations.feed;
        // Whatever becomes of the rest, a renewed certificate is taken up.
        if let Some(certificates) = &self.certificates {
            certificates.look_and_tell(&self.observations).await;
        }
        let sources = self.sources.clone();
        let read = tokio::task::spawn_blocking(move || Config::load(&sources.read_again()?));
        let Ok(read) = read.await else {
            tracing::error!(
                "the configuration could not be read again, the old one stays in force"
            );
            return;
        };
        match read {
            Ok(config) => match self.reload.take_up(&config) {
                Ok(needs_restart) if needs_restart.is_empty() => {
                    tracing::info!("configuration read again and in force");
                }
                Ok(needs_restart) => tracing::warn!(
                    settings = needs_restart.join(", "),
                    "configuration read again; these settings changed and need a restart"
                ),
                Err(why) => {
                    feed.tell("reload_refused", serde_json::json!({ "cause": why }));
                    tracing::error!("configuration refused, the old one stays in force: {why}");
                }
            },
            Err(error) => {
                let mistakes = error.mistakes.len();
                let some = if mistakes == 1 { "mistake" } else { "mistakes" };
                feed.tell(
                    "reload_refused",
                    serde_json::json!({ "mistakes": mistakes, "cause": format!("{mistakes} {some}, named in the log") }),
                );
                tracing::error!("configuration refused, the old one stays in force:\n{error}");
            }
        }
    }
}

enum Signalled {
    End,
    HangUp,
}

/// The signals that are listened for. They are installed before anything is started or announced,
/// and handed on: between two listeners there would be a moment in which a signal is lost.
///
/// ```no_run
/// use steadfast_server::{App, Shutdown, Signals};
///
/// # async fn example(app: App, shutdown: Shutdown) -> std::io::Result<()> {
/// let mut signals = Signals::install()?;
/// signals.asked_to_end().await;
/// shutdown.begin();
/// // … what is under way is answered …
/// if !signals.see_out(app.close()).await {
///     println!("asked again: ending with things left open");
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    /// Catches SIGTERM, SIGINT and SIGHUP from now on; what comes is kept until it is asked for.
    ///
    /// # Errors
    /// If the system does not let signals be caught.
    pub fn install() -> Result<Self, std::io::Error> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves at SIGTERM or SIGINT; a SIGHUP stays to be read by [`run`].
    pub async fn asked_to_end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// Resolves at any of the three: for what has no configuration to read again.
    pub async fn asked_to_end_or_hung_up(&mut self) {
        self.next().await;
    }

    /// Lets what puts things away take up to 5 s, but no longer than until SIGTERM or SIGINT; then
    /// it is dropped. False if a signal cut it short.
    pub async fn see_out(&mut self, ending: impl Future<Output = ()>) -> bool {
        tokio::select! {
            () = self.asked_to_end() => false,
            ended = tokio::time::timeout(CLOSING_LIMIT, ending) => {
                if ended.is_err() {
                    tracing::warn!("not everything was closed within {} s; ending without", CLOSING_LIMIT.as_secs());
                }
                true
            }
        }
    }

    async fn next(&mut self) -> Signalled {
        tokio::select! {
            _ = self.terminate.recv() => Signalled::End,
            _ = self.interrupt.recv() => Signalled::End,
            _ = self.hang_up.recv() => Signalled::HangUp,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn what_does_not_close_is_given_up() {
        let mut signals = Signals::install().unwrap();
        let begun = tokio::time::Instant::now();
        assert!(signals.see_out(std::future::pending()).await);
        assert!(begun.elapsed() >= CLOSING_LIMIT);
    }

    #[tokio::test]
    async fn a_signal_cuts_closing_short() {
        let mut signals = Signals::install().unwrap();
        let me = std::process::id().to_string();
        let sent = std::process::Command::new("kill")
            .args(["-TERM", &me])
            .status();
        assert!(sent.unwrap().success());
        assert!(!signals.see_out(std::future::pending()).await);
    }
}
