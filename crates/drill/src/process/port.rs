//! A port that stays one server's own, also while that server is down.
//!
//! A port found by binding to port 0 and letting go again may be anybody's a moment later: another
//! test's server, or the near end of any outgoing connection. Worse, a server that is killed to be
//! started again on the same port may find it gone. So the port is kept bound here, by a socket
//! that never listens. On Linux a server that sets SO_REUSEADDR (Redis, MariaDB and PostgreSQL all
//! do) may bind and listen beside such a socket, while the kernel hands the port to nobody who did
//! not ask for it by number. While the server is down, a connection to the port is refused, as it
//! is on a port that nobody holds.

use super::ProcessError;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

/// A port, kept for as long as this lives.
#[derive(Debug)]
pub struct Port {
    addr: SocketAddr,
    /// None for the port of a server that another process has started, which keeps it by listening.
    kept: Option<Socket>,
}

impl Port {
    /// Keeps a port of 127.0.0.1 that nobody uses.
    ///
    /// # Errors
    /// [`ProcessError::Spawn`] when the system has no socket or no port left.
    pub fn free() -> Result<Self, ProcessError> {
        Self::numbered(0)
    }

    /// Keeps the port of 127.0.0.1 of that number.
    ///
    /// # Errors
    /// [`ProcessError::PortTaken`] when somebody listens on it.
    pub fn numbered(number: u16) -> Result<Self, ProcessError> {
        Self::at(SocketAddr::from((Ipv4Addr::LOCALHOST, number)))
    }

    /// Keeps a port of any address.
    ///
    /// # Errors
    /// As the two above.
    pub fn at(addr: SocketAddr) -> Result<Self, ProcessError> {
        Self::keep(addr).map_err(|cause| match cause.kind() {
            io::ErrorKind::AddrInUse => ProcessError::PortTaken { port: addr.port() },
            _ => ProcessError::Spawn {
                program: format!("anything on {addr}"),
                cause,
            },
        })
    }

    /// The port of a server that another process has started: kept from now on if it does not run.
    pub(super) fn of_other(number: u16) -> Self {
        Self::numbered(number).unwrap_or(Self {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, number)),
            kept: None,
        })
    }

    /// Whether nobody else gets it while its server is down.
    pub(super) fn is_kept(&self) -> bool {
        self.kept.is_some()
    }

    /// The port's number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.addr.port()
    }

    /// The port with its address.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    fn keep(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&addr.into())?;
        let addr = socket.local_addr()?.as_socket().unwrap_or(addr);
        Ok(Self {
            addr,
            kept: Some(socket),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    #[test]
    fn a_kept_port_refuses_connections_and_admits_a_listener() {
        let port = Port::free().unwrap();
        assert!(TcpStream::connect(port.addr()).is_err());
        let listener = std::net::TcpListener::bind(port.addr()).unwrap();
        assert!(TcpStream::connect(port.addr()).is_ok());
        assert!(matches!(
            Port::numbered(port.number()),
            Err(ProcessError::PortTaken { .. })
        ));
        drop(listener);
        std::net::TcpListener::bind(port.addr()).unwrap();
    }

    #[test]
    fn no_two_kept_ports_are_the_same() {
        let ports: Vec<_> = (0..64).map(|_| Port::free().unwrap()).collect();
        let mut numbers: Vec<_> = ports.iter().map(Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 64);
    }
}
