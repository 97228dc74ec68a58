//! A process that has just become a program (kernel: `fs/exec.c`).

/// The program's file was not seen before, or long ago.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exec {
    /// Process id.
    pub pid: u32,
}

const _: () = assert!(size_of::<Exec>() == 4);
