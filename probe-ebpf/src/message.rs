//! A DNS message on its way, wherever its bytes are: in a packet, or put together from several.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{
        bpf_probe_read_kernel, bpf_skb_load_bytes,
        generated::bpf_probe_read_kernel as bpf_probe_read_kernel_bytes,
    },
    programs::SkBuffContext,
};
use podopsy_wire::DnsKey;

/// Length of the fixed header, RFC 1035 §4.1.1.
pub const HEADER: u32 = 12;

/// Where a message's bytes are.
pub trait Bytes {
    /// The first words of the header, RFC 1035 §4.1.1.
    fn start(&self) -> Option<[u8; 8]>;

    /// Copies `len` bytes from `offset` on to `to`; the number copied.
    ///
    /// # Safety
    /// `to` points to at least `N` writable bytes of a map value or ring entry.
    unsafe fn copy<const N: usize>(&self, offset: u32, to: *mut c_void, len: u32) -> u32;
}

/// In this packet, at this offset.
pub struct InPacket<'a> {
    pub ctx: &'a SkBuffContext,
    pub at: u32,
}

impl Bytes for InPacket<'_> {
    #[inline(always)]
    fn start(&self) -> Option<[u8; 8]> {
        self.ctx.load(self.at as usize).ok()
    }

    /// # Safety
    /// As the trait says.
    #[inline(always)]
    unsafe fn copy<const N: usize>(&self, offset: u32, to: *mut c_void, len: u32) -> u32 {
        // SAFETY: by the trait's contract.
        unsafe { copy::<N>(self.ctx, self.at + offset, to, len) }
    }
}

/// In kernel memory, put together from several segments.
pub struct Held(pub *const u8);

impl Bytes for Held {
    #[inline(always)]
    fn start(&self) -> Option<[u8; 8]> {
        // SAFETY: bpf_probe_read_kernel checks the address and fails instead of faulting.
        unsafe { bpf_probe_read_kernel(self.0.cast::<[u8; 8]>()).ok() }
    }

    /// # Safety
    /// As the trait says.
    #[inline(always)]
    unsafe fn copy<const N: usize>(&self, offset: u32, to: *mut c_void, len: u32) -> u32 {
        // As in the function `copy`.
        let last = core::hint::black_box(len.wrapping_sub(1) as u64);
        if last >= N as u64 {
            return 0;
        }
        let from = self.0.wrapping_add(offset as usize).cast();
        // SAFETY: by the trait's contract, and `last + 1` is at most `N`.
        let failed = unsafe { bpf_probe_read_kernel_bytes(to, last as u32 + 1, from) };
        if failed == 0 { len } else { 0 }
    }
}

/// A DNS message on its way.
pub struct Message<B> {
    /// As in `DnsKey`.
    pub server: [u32; 4],
    pub port: u16,
    pub protocol: u32,
    pub cookie: u64,
    /// Its length as the network says, and how much of it is here: at least a header.
    pub size: u32,
    pub available: u32,
    pub bytes: B,
}

/// The fixed header, RFC 1035 §4.1.1.
pub struct Header {
    pub id: u16,
    pub flags: u16,
    pub questions: u16,
    pub answers: u16,
}

impl Header {
    #[inline(always)]
    pub fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    #[inline(always)]
    pub fn rcode(&self) -> u16 {
        self.flags & 0x000f
    }

    #[inline(always)]
    pub fn is_truncated(&self) -> bool {
        self.flags & 0x0200 != 0
    }
}

impl<B: Bytes> Message<B> {
    #[inline(always)]
    pub fn header(&self) -> Option<Header> {
        let raw = self.bytes.start()?;
        Some(Header {
            id: u16::from_be_bytes([raw[0], raw[1]]),
            flags: u16::from_be_bytes([raw[2], raw[3]]),
            questions: u16::from_be_bytes([raw[4], raw[5]]),
            answers: u16::from_be_bytes([raw[6], raw[7]]),
        })
    }

    #[inline(always)]
    pub fn key(&self, id: u16) -> DnsKey {
        DnsKey { cookie: self.cookie, server: self.server, port: self.port, id, protocol: self.protocol }
    }
}

/// Copies `len` bytes at `offset` to `to`, which has room for `N`; the number copied.
///
/// # Safety
/// `to` points to at least `N` writable bytes of a map value or ring entry.
#[inline(always)]
pub unsafe fn copy<const N: usize>(ctx: &SkBuffContext, offset: u32, to: *mut c_void, len: u32) -> u32 {
    // The verifier wants to see both bounds on the register that it finds in the helper's hands, and
    // LLVM likes to check a copy of it: the black box leaves it only one value to check.
    let last = core::hint::black_box(len.wrapping_sub(1) as u64);
    if last >= N as u64 {
        return 0;
    }
    // SAFETY: by this function's contract, and `last + 1` is at most `N`.
    let failed = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, to, last as u32 + 1) };
    if failed == 0 { len } else { 0 }
}
