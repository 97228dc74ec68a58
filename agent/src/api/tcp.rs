//! An address to answer at by TCP: of either family, and of both where it is `[::]`.

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::libc::EAFNOSUPPORT;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be taken.
const BACKLOG: u32 = 1024;

/// Listens there. `[::]` takes IPv4 as well, whatever the node's `bindv6only` says, and is `0.0.0.0` where the kernel has no
/// IPv6: one manifest for every cluster.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    listen_by(address, open)
}

fn listen_by(address: SocketAddr, open: impl Fn(SocketAddr) -> Result<TcpListener>) -> Result<TcpListener> {
    match open(address) {
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && has_no_ipv6(&error) => {
            tracing::info!("there is no IPv6 here: {address} is answered by IPv4 alone");
            open((Ipv4Addr::UNSPECIFIED, address.port()).into())
        }
        opened => opened,
    }
}

/// The kernel is without IPv6 (ipv6.disable=1), or no address of it can be had.
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
    // One that ended a moment ago is no reason to wait.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn without_ipv6_it_is_ipv4_and_an_address_in_use_is_not_taken_for_that() {
        let any: SocketAddr = "[::]:0".parse().unwrap();
        let without = |error: fn() -> Error| {
            listen_by(any, move |address| if address.is_ipv6() { Err(error()) } else { open(address) })
        };
        let listener = without(|| Error::from_raw_os_error(EAFNOSUPPORT)).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(listener.local_addr().unwrap().ip(), IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        assert!(without(|| ErrorKind::AddrInUse.into()).is_err());
        let taken = open(SocketAddr::from(([127, 0, 0, 1], port)));
        assert_eq!(taken.unwrap_err().kind(), ErrorKind::AddrInUse);
        // Who named an address wants that one.
        let one: SocketAddr = "[::1]:0".parse().unwrap();
        assert!(listen_by(one, |_| Err(Error::from_raw_os_error(EAFNOSUPPORT))).is_err());
    }
}
