//! A DNS message, whose bytes are in a packet or were assembled from several TCP segments.

use core::ffi::c_void;

use aya_ebpf::{
    helpers::{
        bpf_probe_read_kernel, bpf_skb_load_bytes,
        generated::bpf_probe_read_kernel as bpf_probe_read_kernel_bytes,
    },
    programs::SkBuffContext,
};
use podopsy_wire::{DNS_HEADER_BYTES, DnsHeader, DnsKey, Task};

/// Length of the fixed header, RFC 1035 §4.1.1.
pub const HEADER: u32 = DNS_HEADER_BYTES as u32;

/// Access to a message's bytes.
pub trait Bytes {
    /// Whether more than the header of an answer is at hand.
    const HAS_RECORDS: bool;

    /// `N` bytes from `offset` on.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// The header, RFC 1035 §4.1.1.
    fn start(&self) -> Option<Start>;

    /// Copies `len` bytes from `offset` on to `to`; returns the number copied.
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
    const HAS_RECORDS: bool = true;

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.ctx.load((self.at + offset) as usize).ok()
    }

    #[inline(always)]
    fn start(&self) -> Option<Start> {
        self.ctx.load(self.at as usize).ok()
    }

    /// # Safety
    /// As for `copy` of the trait.
    #[inline(always)]
    unsafe fn copy<const N: usize>(&self, offset: u32, to: *mut c_void, len: u32) -> u32 {
        // SAFETY: by the trait's contract.
        unsafe { copy::<N>(self.ctx, self.at + offset, to, len) }
    }
}

/// In kernel memory at this address, assembled from several segments.
pub struct InMemory(pub *const u8);

impl Bytes for InMemory {
    /// Of an answer, only the header is assembled.
    const HAS_RECORDS: bool = false;

    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        // SAFETY: bpf_probe_read_kernel checks the address and fails instead of faulting.
        unsafe { bpf_probe_read_kernel(self.0.wrapping_add(offset as usize).cast::<[u8; N]>()).ok() }
    }

    #[inline(always)]
    fn start(&self) -> Option<Start> {
        // SAFETY: as in `load`.
        unsafe { bpf_probe_read_kernel(self.0.cast::<Start>()).ok() }
    }

    /// # Safety
    /// As for `copy` of the trait.
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

/// The bytes of a header. Aligned, so that they are read by words.
#[derive(Clone, Copy)]
#[repr(C, align(4))]
pub struct Start([u8; DNS_HEADER_BYTES]);

/// A DNS message.
pub struct Message<B> {
    /// As in `DnsKey`.
    pub server: [u32; 4],
    pub port: u16,
    /// UDP: the port at this end.
    pub local_port: u16,
    pub protocol: u32,
    pub cookie: u64,
    /// The task that asks; null: the current one.
    pub asker: *const Task,
    /// The folded address that the packet of a query goes to, if it is not the one that the application gave; 0: it is.
    pub went_to: u32,
    /// Its length, by the UDP header or the TCP length prefix.
    pub size: u32,
    /// How many bytes of it are at hand: at least a header.
    pub available: u32,
    pub bytes: B,
}

impl<B: Bytes> Message<B> {
    #[inline(always)]
    pub fn header(&self) -> Option<DnsHeader> {
        Some(DnsHeader::from_start(self.bytes.start()?.0))
    }

    #[inline(always)]
    pub fn key(&self, id: u16) -> DnsKey {
        DnsKey { cookie: self.cookie, server: self.server, port: self.port, id, protocol: self.protocol }
    }
}

/// Copies `len` bytes at `offset` to `to`, which has a capacity of `N` bytes; returns the number copied.
///
/// # Safety
/// `to` points to at least `N` writable bytes of a map value or ring entry.
#[inline(always)]
pub unsafe fn copy<const N: usize>(ctx: &SkBuffContext, offset: u32, to: *mut c_void, len: u32) -> u32 {
    // The verifier must see both bounds on the register that is passed to the helper, but LLVM tends to check a copy of
    // it. The black box leaves only one value to check.
    let last = core::hint::black_box(len.wrapping_sub(1) as u64);
    if last >= N as u64 {
        return 0;
    }
    // SAFETY: by this function's contract, and `last + 1` is at most `N`.
    let failed = unsafe { bpf_skb_load_bytes(ctx.skb.skb.cast(), offset, to, last as u32 + 1) };
    if failed == 0 { len } else { 0 }
}
