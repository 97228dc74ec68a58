//! The packet socket: frames with their direction and the kernel's timestamp.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

use super::filter;
use super::parse::Frame;
use podopsy_system::clock::boot_now_ns;

/// The largest packet of IPv4, and of IPv6 without jumbograms. Longer ones, which a sender's offload may make, are cut.
const FRAME_MAX: usize = 65_535;
/// Requested size of the receive buffer; without CAP_NET_ADMIN the kernel gives at most net.core.rmem_max.
const BUFFER: usize = 8 << 20;

/// A socket that receives every DNS packet that enters or leaves a network namespace.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    control: Vec<u8>,
}

impl PacketSocket {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open(ports: &[u16]) -> anyhow::Result<PacketSocket> {
        // Protocol 0 receives nothing, so that no packet arrives before the filter is attached.
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: takes no pointers.
        let fd = Errno::result(unsafe { libc::socket(libc::AF_PACKET, kind, 0) }).map_err(explain)?;
        // SAFETY: a new descriptor, which is owned by nothing else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        attach_filter(&fd, ports).context("attach the filter to the packet socket")?;
        setsockopt(&fd, sockopt::ReceiveTimestampns, &true)
            .context("enable the kernel's timestamps of packets")?;
        // Without CAP_NET_ADMIN the buffer may be smaller than requested; frames that do not fit are counted.
        if setsockopt(&fd, sockopt::RcvBufForce, &BUFFER).is_err() {
            setsockopt(&fd, sockopt::RcvBuf, &BUFFER)
                .context("set the size of the packet socket's buffer")?;
        }
        bind(&fd).context("bind the packet socket")?;
        let control = nix::cmsg_space!(TimeSpec);
        Ok(PacketSocket { fd, buffer: vec![0; FRAME_MAX], control })
    }

    /// Waits until there is a frame, at most `limit`; false: there is none yet.
    pub fn wait(&self, limit: Duration) -> anyhow::Result<bool> {
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(error) => Err(anyhow!(error).context("wait for packets")),
        }
    }

    /// Reads the next frame; None: there is none now.
    pub fn frame(&mut self) -> anyhow::Result<Option<Frame<'_>>> {
        let fd = self.fd.as_raw_fd();
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        // MSG_TRUNC: the result is the length of the packet, even if the buffer is shorter.
        let received = recvmsg::<LinkAddr>(fd, &mut parts, Some(&mut self.control), MsgFlags::MSG_TRUNC);
        let (len, from, time_ns) = match received {
            Ok(message) => {
                let mut time_ns = None;
                for part in message.cmsgs().into_iter().flatten() {
                    if let ControlMessageOwned::ScmTimestampns(at) = part {
                        time_ns = Some(to_boot_clock(&at));
                    }
                }
                (message.bytes, message.address, time_ns.unwrap_or_else(boot_now_ns))
            }
            // An interface that goes down is reported once (ENETDOWN).
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENETDOWN) => return Ok(None),
            Err(error) => return Err(anyhow!(error).context("read the packet socket")),
        };
        let kind = from.map_or(libc::PACKET_OTHERHOST, |from| from.pkttype());
        let bytes = &self.buffer[..len.min(self.buffer.len())];
        Ok(Some(Frame {
            bytes,
            len,
            is_outgoing: kind == libc::PACKET_OUTGOING,
            is_ours: kind != libc::PACKET_OTHERHOST,
            time_ns,
        }))
    }

    /// Number of frames since the last call that found the buffer full.
    pub fn dropped(&self) -> u64 {
        let mut statistics = [0u32; 2];
        let mut size = size_of_val(&statistics) as libc::socklen_t;
        // SAFETY: `struct tpacket_stats` is two words, and `size` is the size of the array.
        let result = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                statistics.as_mut_ptr().cast(),
                &raw mut size,
            )
        };
        if result == 0 { statistics[1].into() } else { 0 }
    }
}

fn attach_filter(fd: &OwnedFd, ports: &[u16]) -> Result<(), Errno> {
    let mut program = filter::program(ports);
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the kernel copies `len` instructions from `filter`, both of which live until it returns.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop)
}

/// Binds to all interfaces and all protocols: a socket for one protocol does not receive packets that leave.
fn bind(fd: &OwnedFd) -> Result<(), Errno> {
    // SAFETY: plain integers, for which zero is valid.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: the address lives until the call returns, and its size is its own.
    let result = unsafe {
        libc::bind(fd.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    Errno::result(result).map(drop)
}

/// Converts the wall-clock time of a packet to CLOCK_BOOTTIME.
fn to_boot_clock(at: &TimeSpec) -> u64 {
    let nanos = |time: &TimeSpec| i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec());
    let (boot, Ok(wall)) = (boot_now_ns(), clock_gettime(ClockId::CLOCK_REALTIME)) else {
        return boot_now_ns();
    };
    // If the wall clock is set meanwhile, the packet is still neither in the future nor older than 10 s.
    let ago = u64::try_from(nanos(&wall) - nanos(at)).unwrap_or(0).min(10_000_000_000);
    boot.saturating_sub(ago)
}

/// Adds to the error what to do about it.
fn explain(error: Errno) -> anyhow::Error {
    let open = anyhow!(error).context("open a packet socket");
    match error {
        Errno::EPERM | Errno::EACCES => open.context(
            "not permitted: it needs CAP_NET_RAW (kubectl debug --profile=netadmin, or \
             securityContext.capabilities.add: [\"NET_RAW\"])",
        ),
        Errno::EAFNOSUPPORT => open.context(
            "this kernel or a seccomp filter has no packet sockets (securityContext.seccompProfile: {type: Unconfined})",
        ),
        _ => open,
    }
}
