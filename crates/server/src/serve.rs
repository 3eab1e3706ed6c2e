//! The loop that accepts is written out, because what matters about it is what a ready-made one leaves open: a bound on
//! connections, a limit on how long a caller may take to say what it wants, and an end in which no request that was
//! accepted is lost. It speaks HTTP/1.1: telling HTTP/2 from it without TLS means waiting, without a limit, for a caller
//! to say which of the two it means.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use crate::app::App;
use crate::config::Config;
use crate::http;
use crate::shutdown::Shutdown;

/// Why the service cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another program listens there.
    #[error(
        "{addr} is taken by another program; choose another with --listen, or port 0 for any free one"
    )]
    Taken {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// Others could reach a service that asks nobody who they are.
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
        /// What the system said.
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

/// How a service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Served {
    /// All that was accepted was answered.
    Drained,
    /// So many requests were still in flight at `server.drain_limit`.
    Unfinished {
        /// How many.
        requests: usize,
    },
    /// It was told not to wait.
    Forced,
}

/// The address of the caller, as a request carries it.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// Serves until `shutdown`, then drains: not ready, `drain_delay`, event streams ended, no more accepted, what is in flight
/// finished within `drain_limit`.
pub async fn serve(listener: TcpListener, app: App, shutdown: Shutdown) -> Served {
    let config = app.config().server.clone();
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
        () = acceptor.finish(&app) => Served::Drained,
        () = sleep(config.drain_limit) => Served::Unfinished { requests: app.in_flight() },
        () = shutdown.forced() => Served::Forced,
    }
}

/// How long a connection that was just accepted may take to bring its request when the service ends.
const LAST_WORDS: Duration = Duration::from_millis(250);

struct Acceptor {
    router: axum::Router,
    server: http1::Builder,
    graceful: GracefulShutdown,
    places: Arc<Semaphore>,
}

impl Acceptor {
    fn new(app: &App) -> Self {
        let limits = &app.config().limits;
        let mut server = http1::Builder::new();
        server
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_buf_size(64 << 10);
        Self {
            router: http::router(app.clone()),
            server,
            graceful: GracefulShutdown::new(),
            places: Arc::new(Semaphore::new(limits.connections)),
        }
    }

    /// Accepts until `closing`, while `alongside` runs.
    async fn accept_until(
        &self,
        listener: &TcpListener,
        closing: impl Future<Output = ()>,
        alongside: impl Future<Output = ()>,
    ) {
        let accepting = async {
            loop {
                let Ok(place) = self.places.clone().acquire_owned().await else {
                    return;
                };
                match listener.accept().await {
                    Ok((stream, peer)) => self.start(stream, peer, place),
                    Err(error) => {
                        // Out of descriptors, most often: those that are open will free some.
                        tracing::warn!(%error, "a connection could not be accepted");
                        sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        };
        tokio::pin!(accepting, closing, alongside);
        let mut alongside_done = false;
        loop {
            tokio::select! {
                () = &mut closing => return,
                () = &mut alongside, if !alongside_done => alongside_done = true,
                () = &mut accepting => return,
            }
        }
    }

    /// Takes the connections that the system accepted already, so that closing the listener resets none of them.
    async fn accept_backlog(&self, listener: &TcpListener) {
        while let Ok(place) = self.places.clone().try_acquire_owned() {
            match timeout(Duration::from_millis(1), listener.accept()).await {
                Ok(Ok((stream, peer))) => self.start(stream, peer, place),
                _ => return,
            }
        }
    }

    fn start(&self, stream: TcpStream, peer: SocketAddr, place: OwnedSemaphorePermit) {
        let _ = stream.set_nodelay(true);
        let router = self.router.clone();
        let service = tower::service_fn(move |mut request: http::Incoming| {
            request.extensions_mut().insert(Peer(peer));
            tower::ServiceExt::oneshot(router.clone(), request)
        });
        let connection = self
            .server
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        let connection = self.graceful.watch(connection);
        tokio::spawn(async move {
            // A caller that breaks off, or speaks no HTTP, is its own affair.
            if let Err(error) = connection.await {
                tracing::trace!(%peer, %error, "connection ended");
            }
            drop(place);
        });
    }

    /// Waits for the connections to end; those on which nobody asks anything are not waited for.
    async fn finish(self, app: &App) {
        // A connection that was accepted this moment may still bring its request: closed now, it would be lost.
        sleep(LAST_WORDS).await;
        let all_closed = self.graceful.shutdown();
        let idle = async {
            let mut quiet = 0;
            while quiet < 10 {
                sleep(Duration::from_millis(50)).await;
                quiet = if app.in_flight() == 0 { quiet + 1 } else { 0 };
            }
        };
        tokio::select! {
            () = all_closed => {}
            () = idle => {}
        }
    }
}
