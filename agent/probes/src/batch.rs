//! Reads a whole hash map in a few system calls: `BPF_MAP_LOOKUP_BATCH` (5.6), which aya lacks.

use std::os::fd::{AsRawFd, BorrowedFd};

/// `<linux/bpf.h>`.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Entries that one call may return. The kernel refuses a call whose buffers cannot hold one whole hash bucket. A map has
/// at least as many buckets as entries, so no bucket comes near this number.
const ENTRIES: usize = 512;
/// The largest number of calls for one reading, because a map that changes all the time might never end.
const CALLS_MAX: usize = 4096;

/// The part of `union bpf_attr` that batches use.
#[repr(C)]
struct Attributes {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Returns all entries of the map. None: this kernel lacks the call, and the caller has to read entry by entry.
///
/// `K` and `V` must have the sizes that the map was created with.
pub fn entries<K: aya::Pod, V: aya::Pod>(map: BorrowedFd<'_>) -> Option<Vec<(K, V)>> {
    let mut keys: Vec<K> = Vec::with_capacity(ENTRIES);
    // The kernel rounds the size of a value up to 8 bytes, so `V` must be a multiple of that.
    const { assert!(size_of::<V>().is_multiple_of(8)) };
    let mut values: Vec<V> = Vec::with_capacity(ENTRIES);
    let mut all = Vec::new();
    // The bucket to continue with. The cursor of a hash map has 4 bytes.
    let (mut from, mut to) = (0u64, 0u64);
    for call in 0..CALLS_MAX {
        let mut attributes = Attributes {
            in_batch: if call == 0 { 0 } else { (&raw const from) as u64 },
            out_batch: (&raw mut to) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: ENTRIES as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes point to buffers with a capacity of `count` entries, which outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attributes, size_of::<Attributes>())
        };
        let is_last = result < 0;
        if is_last && std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOENT) {
            return None;
        }
        let count = (attributes.count as usize).min(ENTRIES);
        // SAFETY: the kernel has written `count` keys and values, and any bytes are a valid `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        all.extend(keys.drain(..).zip(values.drain(..)));
        if is_last {
            break;
        }
        from = to;
    }
    Some(all)
}
