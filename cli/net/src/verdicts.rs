//! What is conspicuous about a network, in sentences. Each states what the kernel reported at one moment.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::Serialize;

use crate::{Network, Socket, SocketState, Transport};

/// From this many on, connections that the program does not close are reported.
const CLOSE_WAIT_MIN: usize = 10;
/// From this many bytes on, data that the program does not read are reported.
const UNREAD_MIN: u64 = 64 << 10;

/// A port that a container declares in its pod's specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeclaredPort {
    pub container: String,
    pub port: u16,
    pub transport: Transport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    PortNotListening,
    ListensOnLoopbackOnly,
    AcceptQueueFull,
    AcceptQueueOverflowed,
    ConnectionsUnanswered,
    ConnectionsUnacknowledged,
    DataUnread,
    ConnectionsNotClosed,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verdict {
    pub kind: VerdictKind,
    pub statement: String,
}

/// All verdicts, ports first.
pub fn verdicts(network: &Network, declared: &[DeclaredPort]) -> Vec<Verdict> {
    let mut all: Vec<Verdict> = declared.iter().filter_map(|port| of_port(network, port)).collect();
    all.extend(network.sockets.iter().filter_map(full_queue));
    let overflows = network.counters.listen_overflows;
    if overflows > 0 {
        let statement =
            format!("accept queues overflowed {overflows} times since the network namespace was created");
        all.push(Verdict { kind: VerdictKind::AcceptQueueOverflowed, statement });
    }
    all.extend(unanswered(network));
    all.extend(unacknowledged(network));
    all.extend(unread(network));
    all.extend(not_closed(network));
    all
}

fn of_port(network: &Network, declared: &DeclaredPort) -> Option<Verdict> {
    let DeclaredPort { container, port, transport } = declared;
    let is_there = |socket: &&Socket| {
        socket.is_listener() && socket.transport == *transport && socket.local.port() == *port
    };
    let mut listeners = network.sockets.iter().filter(is_there).peekable();
    let transport = transport.as_str().to_uppercase();
    if listeners.peek().is_none() {
        let statement =
            format!("container {container} declares {transport} port {port}, and nothing listens there");
        return Some(Verdict { kind: VerdictKind::PortNotListening, statement });
    }
    let is_local = listeners.all(|socket| socket.local.ip().to_canonical().is_loopback());
    is_local.then(|| Verdict {
        kind: VerdictKind::ListensOnLoopbackOnly,
        statement: format!(
            "container {container} declares {transport} port {port}, and its listener takes connections from within the pod \
             alone (127.0.0.1 or ::1)"
        ),
    })
}

/// The kernel takes one more connection than the limit (`sk_acceptq_is_full`).
fn full_queue(socket: &Socket) -> Option<Verdict> {
    let is_full = socket.state == SocketState::Listen && socket.receive_queue > socket.send_queue;
    is_full.then(|| Verdict {
        kind: VerdictKind::AcceptQueueFull,
        statement: format!(
            "the accept queue of {} is full: {} connections wait, the limit is {}; {} does not accept them",
            socket.local,
            socket.receive_queue,
            socket.send_queue,
            program(socket)
        ),
    })
}

fn unanswered(network: &Network) -> Vec<Verdict> {
    let groups = by_remote(network, |socket| socket.state == SocketState::SynSent);
    let verdict = |(remote, sockets): (SocketAddr, Vec<&Socket>)| Verdict {
        kind: VerdictKind::ConnectionsUnanswered,
        statement: format!("{} in SYN_SENT to {remote}: it does not answer", connections(sockets.len())),
    };
    groups.into_iter().map(verdict).collect()
}

fn unacknowledged(network: &Network) -> Vec<Verdict> {
    let is_late = |socket: &Socket| socket.timeouts > 0 && socket.state != SocketState::SynSent;
    let verdict = |(remote, sockets): (SocketAddr, Vec<&Socket>)| {
        let most = sockets.iter().map(|socket| socket.timeouts).max().unwrap_or(0);
        Verdict {
            kind: VerdictKind::ConnectionsUnacknowledged,
            statement: format!(
                "{} to {remote} without an acknowledgement after up to {most} retransmissions",
                connections(sockets.len())
            ),
        }
    };
    by_remote(network, is_late).into_iter().map(verdict).collect()
}

fn unread(network: &Network) -> Vec<Verdict> {
    let is_connection = |socket: &&Socket| socket.remote.is_some() && socket.transport == Transport::Tcp;
    let mut by_program: BTreeMap<String, (usize, u64)> = BTreeMap::new();
    for socket in network.sockets.iter().filter(is_connection).filter(|socket| socket.receive_queue > 0) {
        let entry = by_program.entry(program(socket)).or_default();
        *entry = (entry.0 + 1, entry.1 + u64::from(socket.receive_queue));
    }
    by_program.retain(|_, (_, bytes)| *bytes >= UNREAD_MIN);
    let verdict = |(program, (count, bytes)): (String, (usize, u64))| Verdict {
        kind: VerdictKind::DataUnread,
        statement: format!("{program} has not read {} KiB of {}", bytes >> 10, connections(count)),
    };
    by_program.into_iter().map(verdict).collect()
}

fn not_closed(network: &Network) -> Option<Verdict> {
    let mut waiting = network.sockets.iter().filter(|socket| socket.state == SocketState::CloseWait);
    let first = waiting.next()?;
    let count = waiting.count() + 1;
    (count >= CLOSE_WAIT_MIN).then(|| Verdict {
        kind: VerdictKind::ConnectionsNotClosed,
        statement: format!(
            "{} in CLOSE_WAIT: the peers have closed them, and {} has not",
            connections(count),
            program(first)
        ),
    })
}

fn by_remote(network: &Network, is_meant: impl Fn(&Socket) -> bool) -> BTreeMap<SocketAddr, Vec<&Socket>> {
    let mut groups: BTreeMap<SocketAddr, Vec<&Socket>> = BTreeMap::new();
    for socket in network.sockets.iter().filter(|socket| is_meant(socket)) {
        if let Some(remote) = socket.remote {
            groups.entry(remote).or_default().push(socket);
        }
    }
    groups
}

fn connections(count: usize) -> String {
    if count == 1 { "1 connection".to_owned() } else { format!("{count} connections") }
}

fn program(socket: &Socket) -> String {
    match socket.processes.first() {
        Some(owner) => format!("{}[{}]", owner.comm, owner.pid),
        None => "its program".to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{SocketOwner, TcpCounters};

    pub(crate) fn listener(local: &str) -> Socket {
        Socket {
            transport: Transport::Tcp,
            state: SocketState::Listen,
            local: local.parse().unwrap(),
            remote: None,
            receive_queue: 0,
            send_queue: 128,
            timeouts: 0,
            retransmissions: 0,
            uid: 0,
            inode: 7,
            processes: vec![SocketOwner { pid: 9, comm: "api".into(), container: None }],
        }
    }

    fn connection(state: SocketState, remote: &str) -> Socket {
        Socket { state, remote: Some(remote.parse().unwrap()), ..listener("10.0.0.2:40000") }
    }

    fn statements(sockets: Vec<Socket>, declared: &[DeclaredPort]) -> Vec<String> {
        let network = Network { sockets, ..Network::default() };
        verdicts(&network, declared).into_iter().map(|verdict| verdict.statement).collect()
    }

    fn port(port: u16, transport: Transport) -> DeclaredPort {
        DeclaredPort { container: "api".into(), port, transport }
    }

    #[test]
    fn a_declared_port_needs_a_listener_of_its_protocol_that_others_reach() {
        let tcp = [port(8080, Transport::Tcp)];
        let silent = ["container api declares TCP port 8080, and nothing listens there"];
        assert_eq!(statements(vec![listener("0.0.0.0:8081")], &tcp), silent);
        assert_eq!(statements(vec![connection(SocketState::Established, "10.0.0.3:8080")], &tcp), silent);
        assert!(statements(vec![listener("[::]:8080")], &tcp).is_empty());
        assert!(statements(vec![listener("127.0.0.1:8080")], &tcp)[0].contains("within the pod alone"));
        assert!(statements(vec![listener("127.0.0.1:8080"), listener("10.0.0.2:8080")], &tcp).is_empty());
        assert!(statements(vec![listener("0.0.0.0:8080")], &[port(8080, Transport::Udp)])[0].contains("UDP"));
    }

    #[test]
    fn unanswered_connections_are_counted_by_address() {
        let to = |remote| connection(SocketState::SynSent, remote);
        let found = statements(vec![to("10.0.0.9:5432"), to("10.0.0.9:5432"), to("10.0.0.8:80")], &[]);
        assert_eq!(
            found,
            [
                "1 connection in SYN_SENT to 10.0.0.8:80: it does not answer",
                "2 connections in SYN_SENT to 10.0.0.9:5432: it does not answer",
            ]
        );
    }

    #[test]
    fn queues_and_retransmissions_are_reported_with_their_figures() {
        let full = Socket { receive_queue: 129, ..listener("0.0.0.0:80") };
        assert!(statements(vec![full], &[])[0].contains("129 connections wait, the limit is 128; api[9]"));
        assert!(statements(vec![Socket { receive_queue: 128, ..listener("0.0.0.0:80") }], &[]).is_empty());
        let established = connection(SocketState::Established, "10.0.0.9:5432");
        let late = Socket { timeouts: 4, ..established.clone() };
        assert!(statements(vec![late], &[])[0].contains("after up to 4 retransmissions"));
        let unread = Socket { receive_queue: 65_536, ..established };
        assert_eq!(statements(vec![unread], &[]), ["api[9] has not read 64 KiB of 1 connection"]);
        let leaked = vec![connection(SocketState::CloseWait, "10.0.0.9:5432"); 10];
        assert!(statements(leaked, &[])[0].starts_with("10 connections in CLOSE_WAIT"));
        let network = Network {
            counters: TcpCounters { listen_overflows: 3, ..Default::default() },
            ..Default::default()
        };
        assert_eq!(verdicts(&network, &[])[0].kind, VerdictKind::AcceptQueueOverflowed);
    }
}
