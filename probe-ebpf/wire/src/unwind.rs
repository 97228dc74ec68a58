//! Unwind tables, which user space writes into slabs and the kernel side reads, and the reasons why a stack ends.
//!
//! ```text
//! FileKey ─ map TABLES ─→ Table ─→ directory: a u64 a page ─→ rows: a u32 each ─→ map RULES ─→ Rule
//! ```
//!
//! A *page* is 64 KiB of a file: a row is `offset in the page << 16 | rule`, ascending, and holds until the next. The
//! first row of a page is at its offset 0. Directories and rows lie in slabs, the elements of the map `SLABS`.

use bytemuck::{Pod, Zeroable};

/// Words (u32) of a slab: 256 KiB.
pub const SLAB_WORDS: usize = 65_536;
/// Most slabs: 64 MiB, the default limit, and as much again for a larger setting.
pub const SLABS_MAX: usize = 512;
/// Most files in the map `TABLES`, with a table or with the note that they have none.
pub const TABLES_MAX: usize = 4096;
/// Distinct rules. All of Debian's libraries together have some 5,000.
pub const RULES_MAX: usize = 12_288;
/// Bits of a file offset that are inside a page.
pub const PAGE_BITS: u32 = 16;

/// A file as the kernel side sees it behind a mapping. Time and size distinguish a new file that got the inode number
/// of an old one, and a file that was overwritten. The time is the one that no program can set. By it user space checks
/// that the file it opened is the mapped one, also where an overlay shows that file under another inode number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FileKey {
    pub inode: u64,
    pub size: u64,
    /// `s_dev`: major << 20 | minor.
    pub device: u32,
    /// Time of the last change of content or inode (`st_ctime`), seconds.
    pub changed: u32,
}

impl FileKey {
    /// Stands for the vDSO, which is no file.
    pub const VDSO: FileKey = FileKey { inode: 0, size: 0, device: u32::MAX, changed: 0 };
    /// No file.
    pub const NONE: FileKey = FileKey { inode: 0, size: 0, device: 0, changed: 0 };
}

/// `Table::state`: no table yet; user space has been asked for one.
pub const TABLE_ASKED: u32 = 0;
/// There is a table.
pub const TABLE_READY: u32 = 1;
/// There is none and there will be none: the file has no unwind information, or could not be read.
pub const TABLE_NONE: u32 = 2;

/// Where the directory of a file is; a value of the map `TABLES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Table {
    /// `TABLE_*`.
    pub state: u32,
    pub slab: u32,
    /// Index of the directory's first entry, in u64 units.
    pub first: u32,
    /// The page of the file that the first entry is for.
    pub first_page: u32,
    /// Number of entries.
    pub pages: u32,
    /// When a stack last went through the file, in units of 2^30 ns of CLOCK_MONOTONIC; the kernel side writes it.
    pub used: u32,
    /// Number of the file's [`crate::PythonLayout`]; 0: it is no Python interpreter.
    pub python: u32,
    /// The file's number in frames ([`FrameWord`]); 0: user space has not given it one yet.
    pub number: u32,
}

impl Table {
    /// No table yet.
    pub const ASKED: Table = Table {
        state: TABLE_ASKED,
        slab: 0,
        first: 0,
        first_page: 0,
        pages: 0,
        used: 0,
        python: 0,
        number: 0,
    };
}

/// A user frame as a sample has it: where the code lies, in one word. An address means different files over time (exec,
/// dlopen, dlclose), so the kernel side writes the file that it found behind the address, and the offset in it.
///
/// ```text
/// 1 | number of the file: 23 bits | offset in the file: 40 bits
/// 0 | 1 | address of code without a file: 62 bits
/// 0 | 0 | address, of which only the process is known: 62 bits
/// ```
///
/// A file's offset and an address without a file are those of the code that was running: in the instruction that calls,
/// if the frame has called another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameWord {
    /// The number is 0 if user space has not given the file one yet; then [`crate::Sample::file`] is the file.
    File {
        number: u32,
        offset: u64,
    },
    Anonymous(u64),
    /// From the kernel's own walk along frame pointers. All but the innermost are return addresses.
    Address(u64),
}

/// The vDSO's number ([`FileKey::VDSO`]).
pub const VDSO_NUMBER: u32 = 1;

impl FrameWord {
    pub const FILE: u64 = 1 << 63;
    pub const ANONYMOUS: u64 = 1 << 62;
    pub const NUMBER_SHIFT: u32 = 40;
    pub const OFFSET_MASK: u64 = (1 << Self::NUMBER_SHIFT) - 1;
    /// Files can have the numbers from 1 to this one.
    pub const NUMBER_MAX: u32 = (1 << 23) - 1;

    pub fn from_word(word: u64) -> FrameWord {
        if word & Self::FILE != 0 {
            let number = (word >> Self::NUMBER_SHIFT) as u32 & Self::NUMBER_MAX;
            FrameWord::File { number, offset: word & Self::OFFSET_MASK }
        } else if word & Self::ANONYMOUS != 0 {
            FrameWord::Anonymous(word & !Self::ANONYMOUS)
        } else {
            FrameWord::Address(word)
        }
    }

    /// The word of an address that the kernel's walk along frame pointers found. It may be anything that was on the stack:
    /// what is no user address stays in no mapping, and is not taken for another kind of frame.
    pub const fn address(found: u64) -> u64 {
        if found < Self::ANONYMOUS { found } else { 0 }
    }

    /// The word of an offset in a file.
    #[inline(always)]
    pub const fn file(number: u32, offset: u64) -> u64 {
        Self::FILE | (number as u64) << Self::NUMBER_SHIFT | offset & Self::OFFSET_MASK
    }
}

/// A directory's entry: `slab << 48 | first row << 24 | rows`; 0: no rule in that page.
pub const DIRECTORY_SLAB_SHIFT: u32 = 48;
pub const DIRECTORY_FIRST_SHIFT: u32 = 24;

/// Asks user space for the table of a file: a stack met the file, and the map `TABLES` has no entry for it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TableRequest {
    pub key: FileKey,
    /// An address inside the file's mapping in the process `pid`; 0: the process has started this file as its program.
    pub address: u64,
    pub pid: u32,
    pub unused: u32,
}

/// The rules with fixed numbers, the first ones of the map `RULES`.
pub const RULE_NONE: u16 = 0;
pub const RULE_STOP: u16 = 1;
pub const RULE_UNSUPPORTED: u16 = 2;

/// [`Rule::kind`]: no unwind information here.
pub const KIND_NONE: u8 = 0;
/// The outermost frame: its return address is undefined.
pub const KIND_STOP: u8 = 1;
/// Something that no other kind can express.
pub const KIND_UNSUPPORTED: u8 = 2;
/// CFA = base + cfa_offset.
pub const KIND_REGISTER: u8 = 3;
/// CFA = *(base + cfa_offset) + extra.
pub const KIND_DEREF: u8 = 4;
/// CFA = *(base + cfa_offset + index * 8) + extra.
pub const KIND_INDEXED: u8 = 5;
/// A procedure linkage table: CFA = base + cfa_offset + (ip & 15 >= extra ? 8 : 0).
pub const KIND_PLT: u8 = 6;
/// A signal frame: the registers of the interrupted code are on the stack.
pub const KIND_SIGNAL: u8 = 7;
/// A function that has switched to another stack, where its caller is not. The caller is at the frame pointer that the
/// function kept: in its register ([`FP_SAME`]), or where the function that it called has saved it ([`FP_AT_SP`]).
/// A frame pointer of 0 ends the stack: it is complete if `extra` is 1.
pub const KIND_SWITCH: u8 = 8;

/// [`Rule::ra`]: the return address is at CFA + ra_offset; any other value is a register's number + 1.
pub const RA_AT_CFA: u8 = 0;

/// [`Rule::fp`]: unchanged; at CFA, frame pointer, stack pointer + fp_offset.
pub const FP_SAME: u8 = 0;
pub const FP_AT_CFA: u8 = 1;
pub const FP_AT_FP: u8 = 2;
pub const FP_AT_SP: u8 = 3;

/// How to get from a frame to its caller. Registers by their DWARF numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct Rule {
    pub kind: u8,
    pub base: u8,
    pub index: u8,
    pub ra: u8,
    pub fp: u8,
    pub unused: [u8; 3],
    pub ra_offset: i16,
    pub fp_offset: i16,
    pub cfa_offset: i32,
    pub extra: i32,
}

impl Rule {
    /// A rule that consists of its kind only.
    pub const fn of_kind(kind: u8) -> Rule {
        Rule {
            kind,
            base: 0,
            index: 0,
            ra: RA_AT_CFA,
            fp: FP_SAME,
            unused: [0; 3],
            ra_offset: 0,
            fp_offset: 0,
            cfa_offset: 0,
            extra: 0,
        }
    }
}

/// Why a user stack ended.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// It reached the outermost frame.
    Complete = 0,
    /// There is no user stack: a kernel thread, or a process that is exiting.
    NoUser = 1,
    /// It was not unwound by tables; its frames come from frame pointers.
    FramePointers = 2,
    /// A 32-bit process.
    Compat = 3,
    /// The address is in no mapping.
    NoMapping = 4,
    /// There is no table for the file yet.
    TableAsked = 5,
    /// There is no table for the file, permanently.
    TableNone = 6,
    /// Code without a file, and its frame pointer leads nowhere.
    Anonymous = 7,
    /// The file's table has no rule for this address.
    NoRule = 8,
    /// The rule is of a kind that podopsy does not follow, or it needs a register whose value is not known any more.
    Unsupported = 9,
    /// Stack memory could not be read.
    Unreadable = 10,
    /// The next frame was not above this one.
    NoProgress = 11,
    /// Deeper than `FRAMES_MAX`.
    Truncated = 12,
    /// The code had switched to another stack, and where it came from is not known.
    StackSwitch = 13,
    /// The return address is 0, in a function that is not known to be the outermost.
    NoCaller = 14,
}

impl End {
    /// By index.
    pub const ALL: [End; 15] = [
        End::Complete,
        End::NoUser,
        End::FramePointers,
        End::Compat,
        End::NoMapping,
        End::TableAsked,
        End::TableNone,
        End::Anonymous,
        End::NoRule,
        End::Unsupported,
        End::Unreadable,
        End::NoProgress,
        End::Truncated,
        End::StackSwitch,
        End::NoCaller,
    ];
}

/// The probes' read-only global `UNWIND_LAYOUT`: byte offsets from BTF, [`crate::ABSENT`] where this kernel has none.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct UnwindLayout {
    /// 1: tables are used; 0: frame pointers.
    pub on: u32,
    /// 1: this kernel has the helper `bpf_task_pt_regs` (5.15).
    pub has_task_pt_regs: u32,
    /// `task_struct.stack`, for kernels without that helper.
    pub task_stack: u32,
    /// THREAD_SIZE, for kernels without that helper; 0: not known, so that the kernel walks frame pointers instead.
    pub thread_size: u32,
    /// `mm_struct.mm_mt.ma_root` (6.1); where it is absent, `mm_struct.mm_rb.rb_node`.
    pub mm_maple_root: u32,
    pub mm_rb_root: u32,
    pub mm_vdso: u32,
    /// Of `maple_range_64` and `maple_arange_64`; pivots begin at 8 in both.
    pub maple_range_slot: u32,
    pub maple_arange_slot: u32,
    pub vma_start: u32,
    pub vma_end: u32,
    pub vma_pgoff: u32,
    pub vma_file: u32,
    pub vma_flags: u32,
    /// `vm_area_struct.vm_prev` and `.vm_next`, before 6.1.
    pub vma_prev: u32,
    pub vma_next: u32,
    pub vma_rb: u32,
    pub rb_left: u32,
    pub rb_right: u32,
    pub file_inode: u32,
    pub inode_number: u32,
    pub inode_size: u32,
    pub inode_changed: u32,
    pub inode_super: u32,
    pub super_device: u32,
    /// `linux_binprm.file`.
    pub exec_file: u32,
    /// `file.f_mode`, `backing_file.user_path.dentry` (6.7), `dentry.d_inode`.
    pub file_mode: u32,
    pub backing_dentry: u32,
    pub dentry_inode: u32,
    /// `task_struct.thread.fsbase`: where libc keeps what `pthread_self` returns.
    pub task_fsbase: u32,
}

impl UnwindLayout {
    /// Frame pointers only.
    pub const OFF: UnwindLayout = UnwindLayout {
        on: 0,
        has_task_pt_regs: 0,
        thread_size: 0,
        ..bytemuck::must_cast([crate::ABSENT; size_of::<UnwindLayout>() / 4])
    };
}

const _: () = assert!(size_of::<FileKey>() == 24);
const _: () = assert!(size_of::<Table>() == 32);
const _: () = assert!(size_of::<Rule>() == 20);
const _: () = assert!(size_of::<TableRequest>() == 40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_as_it_was_written() {
        let all = [
            FrameWord::File { number: 0, offset: 0 },
            FrameWord::File { number: FrameWord::NUMBER_MAX, offset: FrameWord::OFFSET_MASK },
            FrameWord::File { number: 7, offset: 0x1234 },
        ];
        for frame in all {
            let FrameWord::File { number, offset } = frame else { unreachable!() };
            assert_eq!(FrameWord::from_word(FrameWord::file(number, offset)), frame);
        }
        // The highest address of a machine with five levels of page tables.
        let highest = (1 << 56) - 1;
        assert_eq!(FrameWord::from_word(FrameWord::address(highest)), FrameWord::Address(highest));
        for garbage in [FrameWord::file(7, 1), highest | FrameWord::ANONYMOUS, u64::MAX] {
            assert_eq!(FrameWord::from_word(FrameWord::address(garbage)), FrameWord::Address(0));
        }
        assert_eq!(FrameWord::from_word(highest | FrameWord::ANONYMOUS), FrameWord::Anonymous(highest));
    }
}
