//! Finds what an address of the current process is mapped to, in the kernel's own tree of mappings.
//!
//! A copy of the tree in a map would have to follow every exec, fork, mmap and exit, and would be late for each. The
//! tree is read without its lock: reads cannot fault, a stale result is checked against the mapping's own bounds, and
//! the interrupted CPU delays the grace period after which the nodes are freed.

use core::hint::black_box;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_ktime_get_ns, generated::bpf_probe_read_kernel},
    macros::{map, raw_tracepoint},
    maps::{HashMap, RingBuf},
    programs::RawTracePointContext,
};
use podopsy_wire::{ABSENT, FileKey, FrameWord, Loss, TABLES_MAX, Table, TableRequest, UnwindLayout};

use crate::{
    cpu,
    maps::{CONFIG, count},
    task::{current, number, process_id, read},
    unwind::UNWIND_LAYOUT,
};

/// Words of a maple node (`<linux/maple_tree.h>`).
const NODE_WORDS: usize = 32;
/// The word at which a node's pivots begin: the first word points to the parent.
const PIVOTS: usize = 1;
/// FMODE_BACKING: bit 25, since 6.14 bit 24. On another file the bit means something else; the key that is then read
/// behind it is that of no file with a table.
const MAY_BE_BACKING: u32 = 3 << 24;
/// A tree of 16-way leaves and 10-way nodes this high holds 160,000 mappings; `vm.max_map_count` is 65,530.
const MAPLE_LEVELS: usize = 6;
/// A red-black tree is at most twice as high as a full one.
const RB_LEVELS: usize = 34;
/// `page->vm_pgoff` is in pages of the machine's base size.
const VM_PAGE_BITS: u32 = 12;

/// `<linux/mm.h>`
const VM_EXEC: u64 = 4;

/// `<asm-generic/errno-base.h>`
const EEXIST: i32 = -17;

#[map]
pub static TABLES: HashMap<FileKey, Table> = HashMap::with_max_entries(TABLES_MAX as u32, 0);

/// [`TableRequest`]s.
#[map]
pub static TABLE_REQUESTS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// `Mapping::mapped`: code of a file or of the vDSO, or memory without a file.
pub const MAPPED_FILE: u32 = 0;
pub const MAPPED_ANONYMOUS: u32 = 1;

/// The mapping that was found last; in per-CPU memory, filled in place.
#[repr(C)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    /// Address + this = offset in the file.
    pub to_offset: u64,
    /// `MAPPED_*`.
    pub mapped: u32,
    pub table: Table,
    node: [u64; NODE_WORDS],
    pub request: TableRequest,
}

impl Mapping {
    #[inline(always)]
    pub fn contains(&self, address: u64) -> bool {
        address >= self.start && address < self.end
    }

    /// The frame of an address in this mapping. An offset that a frame has no bits for stays an address.
    #[inline(always)]
    pub fn frame(&self, address: u64) -> u64 {
        let offset = address.wrapping_add(self.to_offset);
        if self.mapped == MAPPED_ANONYMOUS {
            return address | FrameWord::ANONYMOUS;
        }
        if offset > FrameWord::OFFSET_MASK { address } else { FrameWord::file(self.table.number, offset) }
    }
}

/// Finds the mapping of `address`; false: there is none, or it is data.
#[inline(always)]
pub fn find(out: &mut Mapping, mm: u64, address: u64, pid: u32, at: &UnwindLayout) -> bool {
    let vma = containing(&mut out.node, mm, address, at);
    let start = read::<u64>(vma, at.vma_start).unwrap_or(u64::MAX);
    let end = read::<u64>(vma, at.vma_end).unwrap_or(0);
    if address < start || address >= end {
        // An empty mapping contains no address, so that the next one is searched for again.
        (out.start, out.end) = (0, 0);
        return false;
    }
    (out.start, out.end) = (start, end);
    let mut file = read::<u64>(vma, at.vma_file).unwrap_or(0);
    let is_vdso = file == 0 && out.contains(read::<u64>(mm, at.mm_vdso).unwrap_or(0));
    if file != 0 {
        out.to_offset = to_offset(vma, at);
    } else if is_vdso {
        out.to_offset = 0u64.wrapping_sub(start);
    } else {
        // A wrong return address often is one of data.
        if at.vma_flags != ABSENT && number::<u64>(vma, at.vma_flags) & VM_EXEC == 0 {
            (out.start, out.end) = (0, 0);
            return false;
        }
        file = replaced_file(out, mm, vma, at);
        if file == 0 {
            out.mapped = MAPPED_ANONYMOUS;
            return true;
        }
    }
    if is_vdso {
        out.request.key = FileKey::VDSO;
    } else {
        set_key(&mut out.request.key, file, at);
    }
    out.mapped = MAPPED_FILE;
    out.request.address = address;
    out.request.pid = pid;
    find_table(out);
    true
}

/// The `vm_area_struct` of an address, or another one if the address is in none.
#[inline(always)]
fn containing(node: &mut [u64; NODE_WORDS], mm: u64, address: u64, at: &UnwindLayout) -> u64 {
    if at.mm_maple_root != ABSENT {
        in_maple_tree(node, mm, address, at)
    } else {
        in_red_black_tree(mm, address, at)
    }
}

/// Address + this = offset in the file of a mapping.
#[inline(always)]
fn to_offset(vma: u64, at: &UnwindLayout) -> u64 {
    (number::<u64>(vma, at.vma_pgoff) << VM_PAGE_BITS).wrapping_sub(number(vma, at.vma_start))
}

/// The file (`struct file`) whose code the executable anonymous mapping in `out` replaces, with `out.to_offset`; 0: none.
///
/// A program may copy its code to huge pages. The copy lies between two mappings of the file, which the dynamic loader
/// made. If both assign the same offset to it, it is a copy of that part of the file. If they do not, but one of the two
/// is code, the copy was a part of it. User space has the same rule (`Area::take_place_of`).
#[inline(always)]
fn replaced_file(out: &mut Mapping, mm: u64, vma: u64, at: &UnwindLayout) -> u64 {
    if at.vma_flags == ABSENT {
        return 0;
    }
    // Most code without a file is made at run time, and has no file's mapping before it.
    let before = if at.mm_maple_root != ABSENT {
        in_maple_tree(&mut out.node, mm, out.start.wrapping_sub(1), at)
    } else {
        number(vma, at.vma_prev)
    };
    let file = number(before, at.vma_file);
    if file == 0 || number::<u64>(before, at.vma_end) != out.start {
        return 0;
    }
    let after = if at.mm_maple_root != ABSENT {
        in_maple_tree(&mut out.node, mm, out.end, at)
    } else {
        number(vma, at.vma_next)
    };
    let other = number(after, at.vma_file);
    if number::<u64>(after, at.vma_start) != out.end
        || number::<u64>(other, at.file_inode) != number::<u64>(file, at.file_inode)
    {
        return 0;
    }
    let (below, above) = (to_offset(before, at), to_offset(after, at));
    let is_code_below = number::<u64>(before, at.vma_flags) & VM_EXEC;
    let is_code_above = number::<u64>(after, at.vma_flags) & VM_EXEC;
    if below != above && is_code_below == is_code_above {
        return 0;
    }
    out.to_offset = if is_code_below != 0 { below } else { above };
    // The part of the file may not begin before the file does.
    if out.start.wrapping_add(out.to_offset) > FrameWord::OFFSET_MASK { 0 } else { file }
}

/// Sets the key under which the table of a `struct file` is, or is to be requested.
#[inline(always)]
fn set_key(out: &mut FileKey, file: u64, at: &UnwindLayout) {
    *out = key(file, at);
    // A kernel without backing files has no table under the key of a stacked one.
    if at.backing_dentry != ABSENT
        && TABLES.get_ptr(&*out).is_none()
        && number::<u32>(file, at.file_mode) & MAY_BE_BACKING != 0
    {
        let stacked = stacked_key(file, at);
        if TABLES.get_ptr(&stacked).is_some() {
            *out = stacked;
        }
    }
}

/// The key of the file behind a `struct file`.
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

/// The key that user space has for a file behind a stacked one, as on overlayfs: that of the stacked file, which is in
/// `/proc/PID/maps`. All containers of an image share the file below, so the key of that is the better one; but user
/// space cannot know it when it builds tables before the first sample.
#[inline(always)]
fn stacked_key(file: u64, at: &UnwindLayout) -> FileKey {
    let dentry: u64 = number(file, at.backing_dentry);
    inode_key(number(dentry, at.dentry_inode), at)
}

/// A process starts a program. If the file has no table, one is requested before the first sample. Tables of libraries
/// are requested when a stack first meets them.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn unwind_exec(ctx: RawTracePointContext) -> i32 {
    let at = UNWIND_LAYOUT.load();
    // Programs out of scope are skipped: a node may start hundreds a second.
    let config = CONFIG.load();
    if !cpu::is_wanted(current(), &config) {
        return 0;
    }
    let file = read::<u64>(ctx.arg(2), at.exec_file).unwrap_or(0);
    let key = key(file, &at);
    if TABLES.get_ptr(&key).is_some() {
        return 0;
    }
    let pid = process_id(current(), &config);
    let request = TableRequest { key, address: 0, pid, unused: 0 };
    if TABLE_REQUESTS.output::<TableRequest>(&request, 0).is_err() {
        count(Loss::UnwindRequest);
    }
    0
}

/// Finds the table of the mapping's file, and requests one if there is none.
#[inline(always)]
fn find_table(out: &mut Mapping) {
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
    out.table = Table::ASKED;
    // The CPU that inserts the entry requests the table; the others do not.
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

/// Finds the `vm_area_struct` of an address since 6.1: a B-tree of ranges. A node's type is in bits 3 to 6 of the
/// pointer to it.
#[inline(always)]
fn in_maple_tree(node: &mut [u64; NODE_WORDS], mm: u64, address: u64, at: &UnwindLayout) -> u64 {
    let mut entry = read::<u64>(mm, at.mm_maple_root).unwrap_or(0);
    // `xa_is_node`: anything else at the root is a tree without nodes. Below the root that bit is not set.
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
        // The slot of the first pivot that is not below the address: its index is the number of pivots below the
        // address. Pivots behind the node's end are 0, and 0 - 1 is above all addresses. It is computed by arithmetic,
        // because a branch for each pivot would give the verifier 2^15 paths.
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

/// Finds the `vm_area_struct` of an address before 6.1.
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

/// The `mm_struct` of the current task; 0: a kernel thread.
#[inline(always)]
pub fn memory(task_mm: u32) -> u64 {
    read::<u64>(current(), task_mm).unwrap_or(0)
}
