//! A process that has just started a program (kernel: `fs/exec.c`).

use bytemuck::{Pod, Zeroable};

/// Sent when the program's file was not seen before, or not for a long time.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Exec {
    /// Process id.
    pub pid: u32,
}

const _: () = assert!(size_of::<Exec>() == 4);
