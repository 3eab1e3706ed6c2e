//! The loop that accepts is written out, because what matters about it is what a ready-made one
//! leaves open: a bound on connections, a limit on how long a caller may take to say what it wants
//! and to hear the answer, and an end in which no request that was accepted is lost. It speaks
//! HTTP/1.1, over TLS too: telling HTTP/2 from it without TLS means waiting, without a limit, for a
//! caller to say which of the two it means; and a caller that stops reading one of many answers on
//! one connection cannot be told by its socket.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::time::sleep;

use crate::app::App;
use crate::config::Config;
use crate::life::Life;
use crate::shutdown::Shutdown;

mod acceptor;
mod descriptors;
mod manners;
mod tls;
mod wire;

use acceptor::Acceptor;

/// The reason why the service cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// The address is taken by another program.
    #[error(
        "{addr} is taken by another program; choose another with --listen, or port 0 for any free one"
    )]
    Taken {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The address lets others reach a service that asks nobody who they are.
    #[error(
        "{addr} can be reached from outside, but without [auth] the service listens on loopback only; use 127.0.0.1"
    )]
    NotLoopback {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The system refused.
    #[error("cannot listen on {addr}: {cause}")]
    Failed {
        /// The address asked for.
        addr: SocketAddr,
        /// The error of the system.
        cause: std::io::Error,
    },
}

/// Takes the address of `config`.
///
/// # Errors
/// See [`BindError`].
pub async fn bind(config: &Config) -> Result<TcpListener, BindError> {
    let addr = config.server.listen;
    if config.auth.is_none() && !addr.ip().is_loopback() {
        return Err(BindError::NotLoopback { addr });
    }
    TcpListener::bind(addr).await.map_err(|cause| {
        if cause.kind() == std::io::ErrorKind::AddrInUse {
            BindError::Taken { addr }
        } else {
            BindError::Failed { addr, cause }
        }
    })
}

/// The way in which a service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Served {
    /// All that was accepted was answered.
    Drained,
    /// So many requests were still in flight at `server.drain_limit`.
    Unfinished {
        /// The number of those requests.
        requests: usize,
    },
    /// The service was told not to wait.
    Forced,
}

/// Serves until `shutdown`, then drains: not ready, `drain_delay`, event streams ended, no more
/// accepted, what is in flight finished within `drain_limit`. A request is finished when the last
/// byte of its answer has been written.
///
/// ```no_run
/// use steadfast_server::{App, Config, Served, Shutdown, bind, serve};
///
/// # async fn example(config: Config) -> Result<(), Box<dyn std::error::Error>> {
/// let listener = bind(&config).await?;
/// let app = App::start(config).await?;
/// let shutdown = Shutdown::new();
/// let ending = shutdown.clone();
/// tokio::spawn(async move {
///     let _ = tokio::signal::ctrl_c().await;
///     ending.begin(); // `force` does not wait
/// });
/// if let Served::Unfinished { requests } = serve(listener, app.clone(), shutdown).await {
///     println!("{requests} requests were cut off");
/// }
/// app.close().await;
/// # Ok(()) }
/// ```
pub async fn serve(listener: TcpListener, app: App, shutdown: Shutdown) -> Served {
    let config = app.config().server.clone();
    if !config.listen.ip().is_loopback() && config.tls.is_none() {
        tracing::warn!(
            listen = %config.listen,
            "callers from outside send their tokens in the clear, unless something in front ends TLS; see [server.tls]"
        );
    }
    app.serving(&shutdown);
    let acceptor = Acceptor::new(&app);
    acceptor
        .accept_until(&listener, shutdown.closing(), async {
            shutdown.begun().await;
            app.draining();
            tokio::select! {
                () = sleep(config.drain_delay) => {}
                () = shutdown.forced() => {}
            }
            shutdown.close();
        })
        .await;
    acceptor.accept_backlog(&listener).await;
    drop(listener);
    tokio::select! {
        () = acceptor.finish() => Served::Drained,
        () = sleep(config.drain_limit) => Served::Unfinished { requests: app.part::<Arc<Life>>().in_flight() },
        () = shutdown.forced() => Served::Forced,
    }
}

/// Connections accepted beyond `limits.connections`. Whoever probes an instance asks anew each
/// time, and must not wait behind the callers who fill it: it would be taken for dead, and ended
/// with all of them.
const SPARE_CONNECTIONS: usize = 16;
