//! A sample of a CPU.

use crate::Task;

/// The kernel's name of one of its addresses, with its module and a zero (KSYM_NAME_LEN is 512, and names have some 30).
pub const KERNEL_NAME_BYTES: usize = 256;

/// Deepest stack, kernel and user each.
pub const FRAMES_MAX: usize = 127;

/// The head of a sample; `kernel_len` bytes of kernel addresses follow, then `user_len` of user ones, then
/// `python_len` of Python frames, two words each: the code object's address, and where in the code it stands with
/// [`crate::PYTHON_ENTRY`]; innermost first all of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    pub task: Task,
    /// Bytes, or a negative errno: no kernel stack (the CPU was in user mode).
    pub kernel_len: i32,
    /// Bytes, or a negative errno: no user stack (a kernel thread, or memory that could not be read).
    pub user_len: i32,
    /// [`crate::End`]: why the user stack ended.
    pub end: u32,
    /// The user frame, counted from the innermost, that this is about.
    pub end_frame: u32,
    /// Bytes.
    pub python_len: u32,
    /// [`crate::PythonEnd`]: how the walk over Python's frames ended.
    pub python_end: u32,
    /// The interpreter's file: [`crate::Table::python`].
    pub python: u32,
    pub unused: u32,
    /// `Mapping::to_offset` of that file's code.
    pub python_to_offset: u64,
}

const _: () = assert!(size_of::<Sample>() == 80);
