//! Listens on a TCP address: IPv4, IPv6, or both if it is `[::]`.

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::libc::EAFNOSUPPORT;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Listens on an address. `[::]` accepts IPv4 as well, whatever the node's `bindv6only` is, and falls back to `0.0.0.0` if
/// the kernel has no IPv6. So one manifest fits every cluster.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    listen_with(address, open)
}

fn listen_with(address: SocketAddr, open: impl Fn(SocketAddr) -> Result<TcpListener>) -> Result<TcpListener> {
    match open(address) {
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && has_no_ipv6(&error) => {
            tracing::info!("listening on IPv4 only instead of {address}: this machine has no IPv6");
            open((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        opened => opened,
    }
}

/// The kernel has no IPv6 (ipv6.disable=1), or no IPv6 address is available.
fn has_no_ipv6(error: &Error) -> bool {
    error.raw_os_error() == Some(EAFNOSUPPORT) || error.kind() == ErrorKind::AddrNotAvailable
}

fn open(address: SocketAddr) -> Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    // Connections of an agent that has just ended (TIME_WAIT) must not block the address.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn without_ipv6_it_listens_on_ipv4_but_an_address_in_use_is_an_error() {
        let any: SocketAddr = "[::]:0".parse().unwrap();
        let without = |error: fn() -> Error| {
            listen_with(any, move |address| if address.is_ipv6() { Err(error()) } else { open(address) })
        };
        let listener = without(|| Error::from_raw_os_error(EAFNOSUPPORT)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(listener.local_addr().unwrap().ip(), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert!(without(|| ErrorKind::AddrInUse.into()).is_err());
        let taken = open(SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(taken.unwrap_err().kind(), ErrorKind::AddrInUse);
        // A specific address has no fallback.
        let one: SocketAddr = "[::1]:0".parse().unwrap();
        assert!(listen_with(one, |_| Err(Error::from_raw_os_error(EAFNOSUPPORT))).is_err());
    }
}
