//! Programs that start: raw tracepoint `sched_process_exec`, once for each file.
//!
//! User space opens the file while the process lives, so that the stacks of a process that dies within its first second
//! have names.

use aya_ebpf::{
    macros::{map, raw_tracepoint},
    maps::{LruHashMap, RingBuf},
    programs::RawTracePointContext,
};
use podopsy_wire::{Exec, Loss};

use crate::{
    maps::{CONFIG, count},
    task,
};

/// [`Exec`]s.
#[map]
static EXECS: RingBuf = RingBuf::with_byte_size(64 * 1024, 0);

/// A file, by device and inode number.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Executable {
    inode: u64,
    device: u64,
}

/// Files that were reported to user space. LRU: a file that was evicted is reported again, which does no harm.
#[map]
static EXECUTABLES: LruHashMap<Executable, u8> = LruHashMap::with_max_entries(4096, 0);

#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec_new(ctx: RawTracePointContext) -> i32 {
    let config = CONFIG.load();
    let at = &config.layout;
    let file = task::read::<u64>(ctx.arg(2), at.binprm_file).unwrap_or(0);
    let inode = task::read::<u64>(file, at.file_inode).unwrap_or(0);
    let superblock = task::read::<u64>(inode, at.inode_sb).unwrap_or(0);
    let executable = Executable {
        inode: task::read(inode, at.inode_ino).unwrap_or(0),
        device: task::read::<u32>(superblock, at.super_block_dev).unwrap_or(0) as u64,
    };
    if EXECUTABLES.get_ptr(executable).is_some() {
        return 0;
    }
    let pid = task::process_id(task::current(), &config);
    if pid == 0 {
        return 0;
    }
    if EXECS.output::<Exec>(Exec { pid }, 0).is_err() {
        count(Loss::ExecRing);
        return 0;
    }
    let _ = EXECUTABLES.insert(executable, 1, 0);
    0
}
