//! TCP and UDP sockets, by sock_diag.

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use crate::netlink::dump;
use crate::{SOCKETS_MAX, Socket, SocketState, Transport};

/// The offset of `tcpi_total_retrans` in `struct tcp_info` (`<linux/tcp.h>`), to which fields are only appended.
const TOTAL_RETRANSMISSIONS: usize = 100;
/// The offset of `tcpi_retransmits`.
const TIMEOUTS: usize = 2;

/// The sockets of this namespace, and how many there are beyond the bound.
pub(crate) fn list() -> io::Result<(Vec<Socket>, u64)> {
    let mut sockets = Vec::new();
    let mut omitted = 0;
    for (family, protocol, transport) in [
        (AF_INET, IPPROTO_TCP, Transport::Tcp),
        (AF_INET6, IPPROTO_TCP, Transport::Tcp),
        (AF_INET, IPPROTO_UDP, Transport::Udp),
        (AF_INET6, IPPROTO_UDP, Transport::Udp),
    ] {
        let listed = dump(NETLINK_SOCK_DIAG, request(family, protocol), |message| {
            if let SockDiagMessage::InetResponse(response) = message {
                if sockets.len() < SOCKETS_MAX {
                    sockets.push(socket(&response, transport));
                } else {
                    omitted += 1;
                }
            }
            ControlFlow::Continue(())
        });
        // A kernel without IPv6 has no IPv6 sockets.
        if let Err(error) = listed
            && !(family == AF_INET6 && is_unsupported(&error))
        {
            return Err(error);
        }
    }
    Ok((sockets, omitted))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EAFNOSUPPORT | libc::EINVAL))
}

fn request(family: u8, protocol: u8) -> SockDiagMessage {
    let socket_id = if family == AF_INET { SocketId::new_v4() } else { SocketId::new_v6() };
    SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol,
        extensions: ExtensionFlags::INFO,
        states: StateFlags::all(),
        socket_id,
    })
}

fn socket(response: &InetResponse, transport: Transport) -> Socket {
    let header = &response.header;
    let id = &header.socket_id;
    let remote = SocketAddr::new(id.destination_address, id.destination_port);
    let state = state(transport, header.state);
    let info = response.nlas.iter().find_map(|attribute| match attribute {
        Nla::TcpInfo(info) if transport == Transport::Tcp && state != SocketState::Listen => Some(&info[..]),
        _ => None,
    });
    let info = info.unwrap_or_default();
    let total = info.get(TOTAL_RETRANSMISSIONS..TOTAL_RETRANSMISSIONS + 4);
    Socket {
        transport,
        state,
        local: SocketAddr::new(id.source_address, id.source_port),
        remote: (remote.port() != 0).then_some(remote),
        receive_queue: header.recv_queue,
        send_queue: header.send_queue,
        timeouts: info.get(TIMEOUTS).copied().unwrap_or(0),
        retransmissions: total.and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes),
        uid: header.uid,
        inode: header.inode,
        processes: Vec::new(),
    }
}

/// The numbers of `<net/tcp_states.h>`; UDP uses two of them.
fn state(transport: Transport, number: u8) -> SocketState {
    match (number, transport) {
        (1, _) => SocketState::Established,
        (2, _) => SocketState::SynSent,
        // 12: a request that no socket exists for yet (`TCP_NEW_SYN_RECV`).
        (3 | 12, _) => SocketState::SynReceived,
        (4, _) => SocketState::FinWait1,
        (5, _) => SocketState::FinWait2,
        (6, _) => SocketState::TimeWait,
        (7, _) => SocketState::Unconnected,
        (8, _) => SocketState::CloseWait,
        (9, _) => SocketState::LastAck,
        (10, Transport::Tcp) => SocketState::Listen,
        (11, _) => SocketState::Closing,
        _ => SocketState::Unknown,
    }
}
