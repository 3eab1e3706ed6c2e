//! What the outside says by signals: end (SIGTERM, SIGINT), end now (the same again), read the configuration again (SIGHUP).
//! A bad file changes nothing and is complained about loudly: a running service with last week's settings is worth
//! more than none with this week's.

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::App;
use crate::config::{Config, Sources};
use crate::serve::{Served, serve};
use crate::shutdown::Shutdown;

/// Serves until a signal says otherwise: the first SIGTERM or SIGINT drains, the second ends at once, SIGHUP reads `sources` again.
///
/// The app is closed when it returns.
///
/// # Errors
/// If the system does not let signals be caught.
pub async fn run(
    listener: TcpListener,
    app: App,
    sources: Option<Sources>,
) -> Result<Served, std::io::Error> {
    let mut signals = Signals::install()?;
    let shutdown = Shutdown::new();
    let serving = serve(listener, app.clone(), shutdown.clone());
    tokio::pin!(serving);
    let served = loop {
        tokio::select! {
            served = &mut serving => break served,
            heard = signals.next() => match heard {
                Heard::Reload => reload(&app, sources.as_ref()).await,
                Heard::End if shutdown.has_begun() => shutdown.force(),
                Heard::End => {
                    tracing::info!("ending: not ready from now on, again to end at once");
                    shutdown.begin();
                }
            },
        }
    };
    if served != Served::Forced {
        app.close().await;
    }
    Ok(served)
}

async fn reload(app: &App, sources: Option<&Sources>) {
    let Some(sources) = sources else {
        tracing::warn!("there is no configuration file to read again");
        return;
    };
    let again = sources.clone().read_again();
    match again.and_then(|sources| Config::load(&sources)) {
        Ok(config) => {
            let needs_restart = app.reload(&config);
            if needs_restart.is_empty() {
                tracing::info!("configuration read again and in force");
            } else {
                tracing::warn!(
                    settings = needs_restart.join(", "),
                    "configuration read again; these settings changed and need a restart"
                );
            }
        }
        Err(error) => {
            app.tell(
                "reload_refused",
                serde_json::json!({ "mistakes": error.mistakes.len() }),
            );
            tracing::error!("configuration refused, the old one stays in force:\n{error}");
        }
    }
}

enum Heard {
    End,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn install() -> Result<Self, std::io::Error> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.terminate.recv() => Heard::End,
            _ = self.interrupt.recv() => Heard::End,
            _ = self.hang_up.recv() => Heard::Reload,
        }
    }
}
