//! A first Ctrl-C asks for an orderly end; whoever sends a second one means it. Listening begins
//! before anything is started, so that there is no moment in which a signal would leave something
//! behind.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Status, say};

/// The signals that ask a program to end.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Resolves at the first signal. From then on a second one ends the process at once.
    pub(crate) async fn asked_to_stop(mut self) {
        self.next().await;
        tokio::spawn(async move {
            self.next().await;
            say("stopped at once, without draining".to_owned());
            std::process::exit(Status::Interrupted as i32);
        });
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
