//! A sample of a CPU.

use crate::Task;

/// Deepest stack, kernel and user each.
pub const FRAMES_MAX: usize = 127;

/// The head of a sample; `kernel_len` bytes of kernel addresses follow, then `user_len` of user ones.
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
}

const _: () = assert!(size_of::<Sample>() == 56);
