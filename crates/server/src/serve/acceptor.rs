//! The acceptor: one task for each connection, from the handshake to the last byte of the last
//! answer.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::manners::Mannered;
use super::wire::{AnswerBody, CallerSocket, Unwritten};
use super::{SPARE_CONNECTIONS, descriptors, tls};
use crate::app::App;
use crate::certificates::Certificates;
use crate::complaint::Complaints;
use crate::config::LimitsConfig;
use crate::http::middleware::is_stream;
use crate::life::Life;
use crate::peer::{Counted, Peer, Spare};
use crate::router::router;

/// A spare permit is for one short question: each of its stages may take no longer than this, so
/// that nobody holds it for long.
const SPARE_LIMIT: Duration = Duration::from_secs(2);

/// The time that a connection which was just accepted has to bring its request when the service
/// ends.
const LAST_WORDS: Duration = Duration::from_millis(250);

pub(super) struct Acceptor {
    service: ConnectionService,
    limits: LimitsConfig,
    certificates: Option<Arc<Certificates>>,
    life: Arc<Life>,
    graceful: GracefulShutdown,
    permits: Arc<Semaphore>,
    spare: Arc<Semaphore>,
    complaints: Complaints,
}

/// Room for one connection until it ends.
struct ConnectionPermit {
    _permit: OwnedSemaphorePermit,
    spare: bool,
}

impl Acceptor {
    pub(super) fn new(app: &App) -> Self {
        let limits = &app.config().limits;
        let mut server = http1::Builder::new();
        server
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_buf_size(64 << 10);
        let mut brief = server.clone();
        brief
            .header_read_timeout(limits.header_timeout.min(SPARE_LIMIT))
            .keep_alive(false);
        Self {
            service: ConnectionService {
                router: router(app.clone()),
                server,
                brief,
                life: app.part(),
            },
            limits: limits.clone(),
            certificates: app.certificates(),
            life: app.part(),
            graceful: GracefulShutdown::new(),
            permits: Arc::new(Semaphore::new(descriptors::room(app.config()))),
            spare: Arc::new(Semaphore::new(SPARE_CONNECTIONS)),
            complaints: Complaints::default(),
        }
    }

    /// Accepts until `closing`, while `alongside` runs.
    pub(super) async fn accept_until(
        &self,
        listener: &TcpListener,
        closing: impl Future<Output = ()>,
        alongside: impl Future<Output = ()>,
    ) {
        let accepting = async {
            loop {
                let Some(permit) = self.permit().await else {
                    return;
                };
                match listener.accept().await {
                    Ok((stream, peer)) => self.start(stream, peer, self.better(permit)),
                    Err(error) => {
                        // Out of descriptors, most often: those that are open will free some.
                        if let Some(untold) = self.complaints.tell() {
                            tracing::warn!(%error, untold, "a connection could not be accepted");
                        }
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

    /// Room for one more, as soon as there is any.
    async fn permit(&self) -> Option<ConnectionPermit> {
        let (permit, spare) = tokio::select! {
            biased;
            permit = self.permits.clone().acquire_owned() => (permit, false),
            permit = self.spare.clone().acquire_owned() => (permit, true),
        };
        permit
            .ok()
            .map(|_permit| ConnectionPermit { _permit, spare })
    }

    fn permit_now(&self) -> Option<ConnectionPermit> {
        let regular = self.permits.clone().try_acquire_owned();
        let spare = regular.is_err();
        let permit = regular.or_else(|_| self.spare.clone().try_acquire_owned());
        permit
            .ok()
            .map(|_permit| ConnectionPermit { _permit, spare })
    }

    /// A regular permit for a spare one, if one has become free since.
    fn better(&self, permit: ConnectionPermit) -> ConnectionPermit {
        if !permit.spare {
            return permit;
        }
        let regular = self.permits.clone().try_acquire_owned();
        regular.map_or(permit, |_permit| ConnectionPermit {
            _permit,
            spare: false,
        })
    }

    /// Takes the connections that the system accepted already, so that closing the listener resets
    /// none of them.
    pub(super) async fn accept_backlog(&self, listener: &TcpListener) {
        while let Some(permit) = self.permit_now() {
            match timeout(Duration::from_millis(1), listener.accept()).await {
                Ok(Ok((stream, peer))) => self.start(stream, peer, permit),
                _ => return,
            }
        }
    }

    fn start(&self, stream: TcpStream, peer: SocketAddr, permit: ConnectionPermit) {
        let limits = &self.limits;
        let unwritten = Arc::<Unwritten>::default();
        let spare = permit.spare;
        let no_longer_than = |limit: Duration| if spare { limit.min(SPARE_LIMIT) } else { limit };
        let write_limit = no_longer_than(limits.write_timeout);
        let wire = CallerSocket::new(stream, Arc::clone(&unwritten), write_limit);
        let service = self.service.clone();
        let watcher = self.graceful.watcher();
        let handshake_limit = no_longer_than(limits.header_timeout);
        let certificates = self.certificates.clone();
        tokio::spawn(async move {
            let ended = match certificates {
                None => service.serve(wire, peer, spare, unwritten, watcher).await,
                Some(certificates) => {
                    match tls::accept(certificates.current(), wire, handshake_limit).await {
                        Ok(stream) => service.serve(stream, peer, spare, unwritten, watcher).await,
                        Err(why) => {
                            tracing::debug!(%peer, %why, "no TLS with a caller");
                            Ok(())
                        }
                    }
                }
            };
            // A caller that breaks off, or speaks no HTTP, is its own affair.
            if let Err(error) = ended {
                tracing::trace!(%peer, %error, "connection ended");
            }
            drop(permit);
        });
    }

    /// Waits for the connections to end; those on which nobody asks anything are not waited for.
    pub(super) async fn finish(self) {
        // A connection that was accepted this moment may still bring its request: closed now, it
        // would be lost.
        sleep(LAST_WORDS).await;
        let all_closed = self.graceful.shutdown();
        let life = self.life;
        let idle = async {
            let mut quiet = 0;
            while quiet < 10 {
                sleep(Duration::from_millis(50)).await;
                quiet = if life.in_flight() == 0 { quiet + 1 } else { 0 };
            }
        };
        tokio::select! {
            () = all_closed => {}
            () = idle => {}
        }
    }
}

/// The router and the HTTP settings that every connection is served with.
#[derive(Clone)]
struct ConnectionService {
    router: axum::Router,
    server: http1::Builder,
    /// The settings for spare connections.
    brief: http1::Builder,
    life: Arc<Life>,
}

impl ConnectionService {
    async fn serve<S>(
        self,
        stream: S,
        peer: SocketAddr,
        spare: bool,
        unwritten: Arc<Unwritten>,
        watcher: Watcher,
    ) -> hyper::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self {
            router,
            server,
            brief,
            life,
        } = self;
        let service =
            tower::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                // A stream of events is ended by the end of the service, which waits for none.
                let counted = (!is_stream(request.uri().path())).then(|| life.enter());
                let extensions = request.extensions_mut();
                extensions.insert(Peer(peer));
                extensions.insert(Counted);
                if spare {
                    extensions.insert(Spare);
                }
                let unwritten = Arc::clone(&unwritten);
                let answered = tower::ServiceExt::oneshot(router.clone(), request);
                async move {
                    let response = answered.await?;
                    Ok::<_, std::convert::Infallible>(
                        response.map(|body| AnswerBody::new(body, counted, unwritten)),
                    )
                }
            });
        let service = TowerToHyperService::new(service);
        let server = if spare { brief } else { server };
        let stream = Mannered::new(stream);
        let connection = server.serve_connection(TokioIo::new(stream), service);
        watcher.watch(connection).await
    }
}
