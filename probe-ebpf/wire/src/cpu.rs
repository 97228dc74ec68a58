//! A sample of a CPU.

use bytemuck::{Pod, Zeroable};

use crate::{FileKey, Task};

/// The kernel's name of one of its addresses, with its module and a NUL (KSYM_NAME_LEN is 512; most names have about
/// 30).
pub const KERNEL_NAME_BYTES: usize = 256;

/// Deepest stack, kernel and user each.
pub const FRAMES_MAX: usize = 127;

/// The head of a sample. `kernel_len` bytes of kernel addresses follow, then `user_len` bytes of user frames
/// ([`crate::FrameWord`]), then
/// `python_len` bytes of Python frames; all of them innermost first. A Python frame is two words: the address of the
/// code object, and the position in the code with [`crate::PYTHON_ENTRY`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Sample {
    pub task: Task,
    /// Bytes, or a negative errno: no kernel stack (the CPU was in user mode).
    pub kernel_len: i32,
    /// Bytes, or a negative errno: no user stack (a kernel thread, or memory that could not be read).
    pub user_len: i32,
    /// [`crate::End`]: why the user stack ended.
    pub end: u32,
    /// The user frame that `end` is about, counted from the innermost.
    pub end_frame: u32,
    /// Bytes.
    pub python_len: u32,
    /// [`crate::PythonEnd`]: how the walk over Python's frames ended.
    pub python_end: u32,
    /// The interpreter's file: [`crate::Table::python`].
    pub python: u32,
    pub unused: u32,
    /// Added to an address in that file's code it gives the offset in the file (`Mapping::to_offset`).
    pub python_to_offset: u64,
    /// The file of the user frame whose number is 0. There is at most one, the outermost: a file without a number has no
    /// table, and ends the stack.
    pub file: FileKey,
    /// Distinguishes the programs that a process has run (exec): where its stack begins
    /// (`mm_struct.start_stack`, which is random), as in `/proc/PID/stat`. 0: not known.
    pub image: u64,
}

const _: () = assert!(size_of::<Sample>() == 112);
