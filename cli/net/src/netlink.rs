//! A dump by netlink: one request, many answers.

use std::fmt::Debug;
use std::io;
use std::ops::ControlFlow;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

/// The kernel fills at most 32 KiB at a time (`NLMSG_GOODSIZE`, `netlink_dump`).
const BUFFER: usize = 64 << 10;

/// Calls `each` with the answers until it breaks. An answer that cannot be parsed is skipped: a newer kernel may have more.
pub(crate) fn dump<M>(
    protocol: isize,
    request: M,
    mut each: impl FnMut(M) -> ControlFlow<()>,
) -> io::Result<()>
where
    M: NetlinkSerializable + NetlinkDeserializable + Debug,
{
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let received = socket.recv(&mut &mut buffer[..], 0)?;
        if handle(&buffer[..received.min(BUFFER)], &mut each)?.is_break() {
            return Ok(());
        }
    }
}

/// Handles the messages of one datagram.
fn handle<M>(mut datagram: &[u8], each: &mut impl FnMut(M) -> ControlFlow<()>) -> io::Result<ControlFlow<()>>
where
    M: NetlinkDeserializable + Debug,
{
    while let Ok(raw) = NetlinkBuffer::new_checked(&datagram) {
        let length = raw.length() as usize;
        let (message, rest) = datagram.split_at(length);
        datagram = rest.get(length.next_multiple_of(4) - length..).unwrap_or_default();
        let Ok(message) = NetlinkMessage::<M>::deserialize(message) else { continue };
        let flow = match message.payload {
            NetlinkPayload::Done(_) => ControlFlow::Break(()),
            NetlinkPayload::Error(error) => match error.code {
                Some(code) => return Err(io::Error::from_raw_os_error(-code.get())),
                None => ControlFlow::Break(()),
            },
            NetlinkPayload::Overrun(_) => return Err(io::Error::from_raw_os_error(libc::ENOBUFS)),
            NetlinkPayload::InnerMessage(message) => each(message),
            _ => ControlFlow::Continue(()),
        };
        if flow.is_break() {
            return Ok(flow);
        }
    }
    Ok(ControlFlow::Continue(()))
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::RouteNetlinkMessage;

    use super::*;

    #[test]
    fn broken_datagrams_end_without_a_panic() {
        for length in 0..64_u32 {
            for fill in [0_u8, 2, 3, 16, 0xff] {
                let mut bytes = vec![fill; 40];
                bytes[..4].copy_from_slice(&length.to_ne_bytes());
                let _ = handle(&bytes, &mut |_: RouteNetlinkMessage| ControlFlow::Continue(()));
            }
        }
    }
}
