//! Bounds the TCP connections that are open at a time. Where there are too many, the oldest one of the address with the
//! most connections is closed, so that idle clients cannot keep others out.

use std::net::IpAddr;

use tokio::task::AbortHandle;

/// Connections from one address.
const PER_ADDRESS_MAX: usize = 16;

/// The open connections, oldest first.
pub struct TcpConnections {
    max: usize,
    all: Vec<(IpAddr, AbortHandle)>,
}

impl TcpConnections {
    pub fn new(max: usize) -> TcpConnections {
        TcpConnections { max, all: Vec::new() }
    }

    /// Closes a connection if one more from `from` would be too many: the oldest one of `from` if that address has too many
    /// of its own, else the oldest one of the address with the most.
    pub fn close_excess(&mut self, from: IpAddr) {
        self.all.retain(|(_, connection)| !connection.is_finished());
        let address = if self.count(from) >= PER_ADDRESS_MAX {
            Some(from)
        } else if self.all.len() >= self.max {
            self.all.iter().map(|(address, _)| *address).max_by_key(|address| self.count(*address))
        } else {
            None
        };
        let oldest = address.and_then(|address| self.all.iter().position(|(from, _)| *from == address));
        if let Some(oldest) = oldest {
            self.all.remove(oldest).1.abort();
        }
    }

    fn count(&self, address: IpAddr) -> usize {
        self.all.iter().filter(|(from, _)| *from == address).count()
    }

    pub fn add(&mut self, from: IpAddr, connection: AbortHandle) {
        self.all.push((from, connection));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_address_with_the_most_connections_loses_its_oldest() {
        let mut connections = TcpConnections::new(20);
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut connect = |n: u8| {
            let task = tokio::spawn(std::future::pending::<()>());
            connections.close_excess(address(n));
            connections.add(address(n), task.abort_handle());
            task
        };
        let few = [connect(1), connect(2)];
        let many: Vec<_> = (0..40).map(|_| connect(3)).collect();
        let single: Vec<_> = (4..14).map(&mut connect).collect();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(few.iter().chain(&single).all(|task| !task.is_finished()));
        let is_open: Vec<bool> = many.iter().map(|task| !task.is_finished()).collect();
        // Twelve of the 20 belong to other addresses. Of the many, the newest stay.
        assert_eq!(is_open.iter().filter(|open| **open).count(), 8);
        assert!(is_open[32..].iter().all(|open| *open), "{is_open:?}");
    }
}
