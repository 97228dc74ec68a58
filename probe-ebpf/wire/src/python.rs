//! Where CPython keeps its threads' frames, as user space tells the kernel side for each file that is an interpreter,
//! and what the kernel side hands back.
//!
//! ```text
//! Table.python ─→ PYTHONS[n] ─→ _PyRuntime ─→ interpreters ─→ thread states ─→ the one of this thread ─→ its frames
//! ```

/// Interpreters' files that are known at a time; 0 is no interpreter.
pub const PYTHONS_MAX: usize = 64;
/// Python frames of a sample.
pub const PYTHON_FRAMES_MAX: usize = 128;
/// Thread states that are looked at for the one of the sampled thread.
pub const PYTHON_THREADS_MAX: usize = 256;
/// The longest `PythonLayout::frame_bytes`.
pub const PYTHON_FRAME_BYTES: usize = 128;

/// The frame's instruction is a pointer into its code.
pub const INSTRUCTION_POINTER: u32 = 0;
/// … is an index of 16-bit units into its code, an `int` (3.10).
pub const INSTRUCTION_INDEX: u32 = 1;

/// In the second word of a frame: the marker says that this frame begins, or stands for, a call of the interpreter
/// from C. The instruction's distance is in the lower half.
pub const PYTHON_ENTRY: u64 = 1 << 63;

/// One interpreter's file: byte offsets in its structures.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PythonLayout {
    /// `_PyRuntime` is at this less `Mapping::to_offset`, for the mapping that the interpreter's code lies in.
    pub runtime: u64,
    /// `_PyRuntime.interpreters.head`.
    pub interpreters: u32,
    pub interpreter_next: u32,
    pub interpreter_threads: u32,
    pub thread_next: u32,
    /// What `pthread_self` returned in the thread.
    pub thread_id: u32,
    /// The innermost frame, or what points to it …
    pub thread_frame: u32,
    /// … here; [`crate::ABSENT`]: it is the frame.
    pub indirect_frame: u32,
    /// How much of a frame is read: no more than the smallest has.
    pub frame_bytes: u32,
    pub frame_code: u32,
    pub frame_previous: u32,
    pub frame_instruction: u32,
    /// `INSTRUCTION_*`.
    pub instruction_is: u32,
    /// A byte of the frame: it is an entry frame where `byte & marker_mask == marker_value`.
    pub frame_marker: u32,
    pub marker_mask: u32,
    pub marker_value: u32,
    /// What points to the innermost frame has another such thing before it, which this leads to; [`crate::ABSENT`]: no.
    pub indirect_previous: u32,
}

/// How the walk over Python's frames ended.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PythonEnd {
    /// No interpreter is in the stack, or there is nothing that walks its frames.
    #[default]
    None = 0,
    /// At the outermost frame.
    Complete = 1,
    /// The runtime knows no such thread.
    NoThread = 2,
    /// More threads than are looked at.
    ManyThreads = 3,
    /// Memory of the runtime or of a frame could not be read.
    Unreadable = 4,
    /// Deeper than [`PYTHON_FRAMES_MAX`].
    Truncated = 5,
}

impl PythonEnd {
    /// By index.
    pub const ALL: [PythonEnd; 6] = [
        PythonEnd::None,
        PythonEnd::Complete,
        PythonEnd::NoThread,
        PythonEnd::ManyThreads,
        PythonEnd::Unreadable,
        PythonEnd::Truncated,
    ];
}

const _: () = assert!(size_of::<PythonLayout>() == 72);
