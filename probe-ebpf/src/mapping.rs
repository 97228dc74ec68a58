//! What an address of the current process is mapped to: the kernel's own tree of mappings, read in place.
//!
//! A copy of it in a map would have to follow every exec, fork, mmap and exit, and would be late for each. The tree is
//! read without its lock: reads cannot fault, a stale answer is checked against the mapping's own bounds, and the
//! interrupted CPU holds back the grace period that would free the nodes.

use core::hint::black_box;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated::bpf_probe_read_kernel},
    macros::{map, raw_tracepoint},
    maps::{HashMap, RingBuf},
    programs::RawTracePointContext,
};
use podopsy_wire::{ABSENT, FileKey, Loss, TABLE_ASKED, TABLES_MAX, Table, TableRequest, UnwindLayout};

use crate::{
    maps::{CONFIG, count},
    oncpu,
    task::{current, number, read},
    unwind::UNWIND_LAYOUT,
};

/// Words of a maple node, and of those the parent's (`<linux/maple_tree.h>`).
const NODE_WORDS: usize = 32;
const PIVOTS: usize = 1;
/// FMODE_BACKING was bit 25, and has been bit 24 since 6.14. On another file the bit means something else, and what is
/// then read behind it is the name of no file that has a table.
const MAY_BE_BACKING: u32 = 3 << 24;
/// A tree of 16-way leaves and 10-way nodes this high holds 160,000 mappings; `vm.max_map_count` is 65,530.
const MAPLE_LEVELS: usize = 6;
/// A red-black tree is at most twice as high as a full one.
const RB_LEVELS: usize = 34;
/// `page->vm_pgoff` is in pages of the machine's base size.
const VM_PAGE_BITS: u32 = 12;

/// `<asm-generic/errno-base.h>`
const EEXIST: i32 = -17;

#[map]
pub static TABLES: HashMap<FileKey, Table> = HashMap::with_max_entries(TABLES_MAX as u32, 0);

/// [`TableRequest`]s.
#[map]
pub static TABLE_REQUESTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// What lies in a mapping.
pub const PLACE_FILE: u32 = 0;
pub const PLACE_ANONYMOUS: u32 = 1;

/// A mapping that was looked at; in per-CPU memory, filled in place.
#[repr(C)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// Address + this = offset in the file.
    pub to_offset: u64,
    pub place: u32,
    pub table: Table,
    node: [u64; NODE_WORDS],
    request: TableRequest,
}

/// Finds the mapping of `address`; false: there is none.
#[inline(always)]
pub fn find(out: &mut Mapping, mm: u64, address: u64, pid: u32, at: &UnwindLayout) -> bool {
    let vma = if at.mm_maple_root != ABSENT {
        in_maple_tree(&mut out.node, mm, address, at)
    } else {
        in_red_black_tree(mm, address, at)
    };
    let start = read::<u64>(vma, at.vma_start).unwrap_or(u64::MAX);
    let end = read::<u64>(vma, at.vma_end).unwrap_or(0);
    if address < start || address >= end {
        // Nothing is in an empty mapping, so that the next address is looked for anew.
        (out.start, out.end) = (0, 0);
        return false;
    }
    (out.start, out.end) = (start, end);
    let file = read::<u64>(vma, at.vma_file).unwrap_or(0);
    if file != 0 {
        out.request.key = key(file, at);
        // A kernel without such files has no table by that name.
        if at.backing_dentry != ABSENT
            && TABLES.get_ptr(&out.request.key).is_none()
            && number::<u32>(file, at.file_mode) & MAY_BE_BACKING != 0
        {
            let stacked = stacked_key(file, at);
            if TABLES.get_ptr(&stacked).is_some() {
                out.request.key = stacked;
            }
        }
        let pages = read::<u64>(vma, at.vma_pgoff).unwrap_or(0);
        out.to_offset = (pages << VM_PAGE_BITS).wrapping_sub(start);
    } else {
        let vdso = read::<u64>(mm, at.mm_vdso).unwrap_or(0);
        if vdso < start || vdso >= end {
            out.place = PLACE_ANONYMOUS;
            return true;
        }
        out.request.key = FileKey::VDSO;
        out.to_offset = 0u64.wrapping_sub(start);
    }
    out.place = PLACE_FILE;
    out.request.address = address;
    out.request.pid = pid;
    table(out);
    true
}

/// What names a `struct file`'s file.
#[inline(always)]
fn key(file: u64, at: &UnwindLayout) -> FileKey {
    inode_key(number(file, at.file_inode), at)
}

#[inline(always)]
fn inode_key(inode: u64, at: &UnwindLayout) -> FileKey {
    let superblock: u64 = number(inode, at.inode_super);
    FileKey {
        inode: number(inode, at.inode_number),
        size: number(inode, at.inode_size),
        device: number(superblock, at.super_device),
        changed: number(inode, at.inode_changed),
    }
}

/// What user space calls a file that lies behind a stacked one, as on overlayfs: the stacked one, which is in
/// `/proc/PID/maps`. All containers of an image share the file below, so that this has the better name; but whoever
/// makes tables before the first sample cannot know it.
#[inline(always)]
fn stacked_key(file: u64, at: &UnwindLayout) -> FileKey {
    let dentry: u64 = number(file, at.backing_dentry);
    inode_key(number(dentry, at.dentry_inode), at)
}

/// A process has a new program: if its file has no table, user space gets to know before the first sample. Others'
/// tables, of libraries, are asked for when a stack first meets them.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn unwind_exec(ctx: RawTracePointContext) -> i32 {
    let at = UNWIND_LAYOUT.load();
    // Nobody else's programs are of interest: a node starts hundreds a second.
    if !oncpu::is_wanted(current(), &CONFIG.load()) {
        return 0;
    }
    let file = read::<u64>(ctx.arg(2), at.exec_file).unwrap_or(0);
    let key = key(file, &at);
    if TABLES.get_ptr(&key).is_some() {
        return 0;
    }
    let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let request = TableRequest { key, address: 0, pid, unused: 0 };
    if TABLE_REQUESTS.output::<TableRequest>(&request, 0).is_err() {
        count(Loss::UnwindRequest);
    }
    0
}

/// The table of the mapping's file; asks for it if there is none.
#[inline(always)]
fn table(out: &mut Mapping) {
    if let Some(table) = TABLES.get_ptr_mut(&out.request.key) {
        // SAFETY: the element stays where it is while this program runs; user space replaces whole elements.
        unsafe {
            out.table = *table;
            let now = (bpf_ktime_get_ns() >> 30) as u32;
            if out.table.used != now {
                (*table).used = now;
            }
        }
        return;
    }
    out.table = Table { state: TABLE_ASKED, slab: 0, first: 0, first_page: 0, pages: 0, used: 0, python: 0 };
    // Only one of all CPUs asks.
    if let Err(error) = TABLES.insert(&out.request.key, &out.table, BPF_NOEXIST as u64) {
        if error != EEXIST {
            count(Loss::UnwindRequest);
        }
        return;
    }
    out.request.unused = 0;
    if TABLE_REQUESTS.output::<TableRequest>(&out.request, 0).is_err() {
        count(Loss::UnwindRequest);
        let _ = TABLES.remove(&out.request.key);
    }
}

/// Since 6.1: a B-tree of ranges. The node's type is in bits 3 to 6 of what points to it.
#[inline(always)]
fn in_maple_tree(node: &mut [u64; NODE_WORDS], mm: u64, address: u64, at: &UnwindLayout) -> u64 {
    let mut entry = read::<u64>(mm, at.mm_maple_root).unwrap_or(0);
    // `xa_is_node`: anything else at the root is a tree without nodes. Below the root nobody sets that bit.
    if entry & 3 != 2 || entry <= 4096 {
        return 0;
    }
    for _ in 0..MAPLE_LEVELS {
        let kind = entry >> 3 & 0xf;
        let from = entry & !0xff;
        // SAFETY: the helper checks the address; the node is as long as is read.
        if unsafe {
            bpf_probe_read_kernel(node.as_mut_ptr().cast(), (NODE_WORDS * 8) as u32, from as *const _)
        } != 0
        {
            return 0;
        }
        // maple_dense 0, maple_leaf_64 1, maple_range_64 2, maple_arange_64 3.
        let slots = (if kind == 3 { at.maple_arange_slot } else { at.maple_range_slot } / 8) as usize;
        // The slot whose pivot is the first not below the address: as many as are below it. Pivots behind the node's end
        // are 0, which less 1 is above all. By arithmetic: a branch for each would be 2^15 paths to verify.
        let mut index = 0;
        for pivot in 0..15 {
            if pivot + PIVOTS < slots {
                let last = black_box(node[PIVOTS + pivot].wrapping_sub(1));
                index += ((last.wrapping_sub(address - 1) & !last) >> 63) as usize;
            }
        }
        entry = node[(slots + index) & (NODE_WORDS - 1)];
        if kind < 2 {
            return entry;
        }
    }
    0
}

/// Before 6.1.
#[inline(always)]
fn in_red_black_tree(mm: u64, address: u64, at: &UnwindLayout) -> u64 {
    let mut node = read::<u64>(mm, at.mm_rb_root).unwrap_or(0);
    for _ in 0..RB_LEVELS {
        if node == 0 {
            return 0;
        }
        let vma = node - at.vma_rb as u64;
        let next = if address < read::<u64>(vma, at.vma_start).unwrap_or(0) {
            at.rb_left
        } else if address >= read::<u64>(vma, at.vma_end).unwrap_or(0) {
            at.rb_right
        } else {
            return vma;
        };
        node = read::<u64>(node, next).unwrap_or(0);
    }
    0
}

/// The current task's memory; 0: a kernel thread's.
#[inline(always)]
pub fn memory(task_mm: u32) -> u64 {
    read::<u64>(current(), task_mm).unwrap_or(0)
}
