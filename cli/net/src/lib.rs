//! The network of a pod as the kernel has it, by netlink from within its network namespace. No tool of the image is used,
//! and nothing is left behind: a thread enters the namespace and ends.
//!
//! ```text
//! /proc/PID/ns/net ─▶ namespace (a thread) ─┬─ links    rtnetlink: interfaces, addresses, routes ─┐
//!                                           ├─ sockets  sock_diag: TCP, UDP ─ processes (fd → pid) ─┼─▶ Network ─▶ verdicts
//!                                           └─ counters /proc/thread-self/net/netstat ─────────────┘
//! ```
//!
//! Must not depend on: pods, the runtime, rendering.
#![forbid(unsafe_code)]

mod counters;
mod links;
mod namespace;
mod netlink;
mod processes;
mod sockets;
mod verdicts;

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use serde::Serialize;

pub use counters::TcpCounters;
pub use namespace::run_in;
pub use processes::{PodProcess, SocketOwner};
pub use verdicts::{DeclaredPort, Verdict, VerdictKind, verdicts};

/// Sockets that are read of one namespace; what exceeds it is counted.
pub const SOCKETS_MAX: usize = 65_536;

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("cannot open the network namespace {path}")]
    Namespace { path: String, source: io::Error },
    #[error("cannot enter the network namespace")]
    Enter(#[source] io::Error),
    #[error("cannot list {what} by netlink")]
    Netlink { what: &'static str, source: io::Error },
    #[error("the thread that reads the namespace failed")]
    Thread,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Network {
    pub interfaces: Vec<Interface>,
    /// Of the main tables, without those that the kernel derives from addresses.
    pub routes: Vec<Route>,
    pub sockets: Vec<Socket>,
    /// Sockets beyond [`SOCKETS_MAX`].
    pub sockets_omitted: u64,
    pub counters: TcpCounters,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interface {
    pub index: u32,
    pub name: String,
    pub is_up: bool,
    pub mtu: Option<u32>,
    pub mac: String,
    pub addresses: Vec<Address>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Address {
    pub ip: IpAddr,
    pub prefix: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// `default`, or an address with its prefix length.
    pub destination: String,
    pub gateways: Vec<IpAddr>,
    pub interface: String,
    pub source: Option<IpAddr>,
    pub metric: Option<u32>,
    /// `unicast`, or what is done instead of routing: `blackhole`, `unreachable`, `prohibit`.
    pub kind: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    pub fn as_str(self) -> &'static str {
        match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        }
    }
}

/// The state of a socket, as `ss` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SocketState {
    Listen,
    Unconnected,
    Established,
    SynSent,
    SynReceived,
    FinWait1,
    FinWait2,
    TimeWait,
    CloseWait,
    LastAck,
    Closing,
    Unknown,
}

impl SocketState {
    pub fn as_str(self) -> &'static str {
        match self {
            SocketState::Listen => "LISTEN",
            SocketState::Unconnected => "UNCONN",
            SocketState::Established => "ESTAB",
            SocketState::SynSent => "SYN-SENT",
            SocketState::SynReceived => "SYN-RECV",
            SocketState::FinWait1 => "FIN-WAIT-1",
            SocketState::FinWait2 => "FIN-WAIT-2",
            SocketState::TimeWait => "TIME-WAIT",
            SocketState::CloseWait => "CLOSE-WAIT",
            SocketState::LastAck => "LAST-ACK",
            SocketState::Closing => "CLOSING",
            SocketState::Unknown => "UNKNOWN",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Socket {
    pub transport: Transport,
    pub state: SocketState,
    pub local: SocketAddr,
    /// Null: it has no peer.
    pub remote: Option<SocketAddr>,
    /// Bytes that the program has not read; of a listener, connections that it has not accepted.
    pub receive_queue: u32,
    /// Bytes that the peer has not acknowledged; of a listener, the limit of its accept queue.
    pub send_queue: u32,
    /// TCP: timeouts since the peer's last acknowledgement.
    pub timeouts: u8,
    /// TCP: segments that were sent again, since the connection began.
    pub retransmissions: u32,
    pub uid: u32,
    pub inode: u32,
    /// Processes of the pod that hold it.
    pub processes: Vec<SocketOwner>,
}

impl Socket {
    /// Whether it takes connections, or datagrams from any peer.
    pub fn is_listener(&self) -> bool {
        match self.transport {
            Transport::Tcp => self.state == SocketState::Listen,
            Transport::Udp => self.remote.is_none(),
        }
    }
}

impl Network {
    /// Reads the namespace at `path`, such as `/proc/PID/ns/net`. Sockets get their processes among `members`.
    pub fn read(path: &Path, members: &[PodProcess]) -> Result<Network, NetworkError> {
        let shown = || podopsy_model::text::escape(&path.display().to_string());
        let namespace =
            File::open(path).map_err(|source| NetworkError::Namespace { path: shown(), source })?;
        let mut network = namespace::run_in(&namespace, Network::read_here)??;
        processes::assign(&mut network.sockets, members);
        Ok(network)
    }

    /// Reads the namespace of this thread.
    fn read_here() -> Result<Network, NetworkError> {
        let error = |what| move |source| NetworkError::Netlink { what, source };
        let interfaces = links::interfaces().map_err(error("interfaces and addresses"))?;
        let routes = links::routes(&interfaces).map_err(error("routes"))?;
        let (mut sockets, sockets_omitted) = sockets::list().map_err(error("sockets"))?;
        sockets.sort_by_key(|socket| (!socket.is_listener(), socket.transport, socket.state, socket.local));
        Ok(Network { interfaces, routes, sockets, sockets_omitted, counters: TcpCounters::read() })
    }
}
