//! What every thread is refused of sockets: to make a Unix socket that could be connected.
//!
//! Services of the node listen on Unix sockets and believe root, the container runtime among them. The path of connect(2) is in
//! memory, where the filter cannot look. The domain and the type of a new socket are in registers. So no new socket is a Unix
//! socket, except for pairs: a stream of a pair is connected already, which connect(2) refuses (EISCONN). A datagram socket of a
//! pair could be connected again, or send to any other one, so such pairs are refused, too.
//!
//! The names of pods come from the runtime reader (`podopsy-runtime`).

use seccompiler::SeccompCmpOp;

use super::filter::{Refusal, when};

/// The domains of sockets that stay allowed: exports and the agent's port, and how libc sorts addresses.
const DOMAINS: [libc::c_int; 3] = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// `SOCK_TYPE_MASK` (`<linux/net.h>`): the other bits of a type are flags.
const TYPE: u64 = 0xf;

pub fn refusals() -> anyhow::Result<Vec<Refusal>> {
    let others: anyhow::Result<_> =
        DOMAINS.iter().map(|domain| when(0, SeccompCmpOp::Ne, *domain as u64)).collect();
    let mut refused = vec![Refusal::if_all(libc::SYS_socket, others?)];
    // The kernel makes a datagram socket of a raw one (`unix_create` in net/unix/af_unix.c).
    for datagrams in [libc::SOCK_DGRAM, libc::SOCK_RAW] {
        let is_type = when(1, SeccompCmpOp::MaskedEq(TYPE), datagrams as u64)?;
        refused.push(Refusal::only(libc::SYS_socketpair, is_type));
    }
    Ok(refused)
}
