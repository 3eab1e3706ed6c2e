//! A port that stays one server's own, also while that server is down.
//!
//! A port found by binding to port 0 and letting go again may be anybody's a moment later: another test's
//! server, or the near end of any outgoing connection. Worse, a server that is killed to be started again on
//! the same port may find it gone. So the port is kept bound here, by a socket that never listens. On Linux
//! a server that sets SO_REUSEADDR (Redis, MariaDB and PostgreSQL all do) may bind and listen beside such a
//! socket, while the kernel hands the port to nobody who did not ask for it by number. While the server is
//! down, a connection to the port is refused, as it is on a port that nobody holds.

use super::ProcessError;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

/// A port of 127.0.0.1, kept for as long as this lives.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _kept: Socket,
}

impl Port {
    /// Keeps a port that nobody uses.
    ///
    /// # Errors
    /// When the system has no socket or no port left.
    pub fn free() -> io::Result<Self> {
        Self::keep(0)
    }

    /// Keeps the port of that number.
    ///
    /// # Errors
    /// [`ProcessError::PortTaken`] when somebody listens on it.
    pub fn numbered(number: u16) -> Result<Self, ProcessError> {
        Self::keep(number).map_err(|_| ProcessError::PortTaken { port: number })
    }

    /// The port's number.
    #[must_use]
    pub fn number(&self) -> u16 {
        self.number
    }

    /// The port with its address, 127.0.0.1.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }

    fn keep(number: u16) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, number)).into())?;
        let number = socket
            .local_addr()?
            .as_socket()
            .map_or(number, |addr| addr.port());
        Ok(Self {
            number,
            _kept: socket,
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
