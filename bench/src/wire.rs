//! A wire that can be cut: what goes through it is lost without a word, as behind a firewall that
//! forgot a connection. New connections pass.

use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

pub struct Wire {
    addr: SocketAddr,
    cuts: watch::Sender<u64>,
    task: AbortHandle,
}

impl Wire {
    pub async fn to(upstream: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let (cuts, cut) = watch::channel(0);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let mut cut = cut.clone();
                cut.mark_unchanged();
                connections.spawn(async move {
                    let (mut client, mut server) = (client, TcpStream::connect(upstream).await?);
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    tokio::select! {
                        copied = tokio::io::copy_bidirectional(&mut client, &mut server) => copied.map(drop),
                        // Held open and never read again.
                        _ = cut.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Ok(Self {
            addr,
            cuts,
            task: task.abort_handle(),
        })
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.addr)
    }

    /// Cuts every connection there is.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}
