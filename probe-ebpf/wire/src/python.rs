//! Where CPython keeps its threads' frames: user space writes a layout for each file that is an interpreter, and the
//! kernel side walks the frames by it.
//!
//! ```text
//! Table.python ─→ PYTHONS[n] ─→ _PyRuntime ─→ interpreters ─→ thread states ─→ the one of this thread ─→ its frames
//! ```

use bytemuck::{Pod, Zeroable};

/// Size of the map `PYTHONS`: interpreters' files that are known at a time. Index 0 means no interpreter.
pub const PYTHONS_MAX: usize = 64;
/// Most Python frames in a sample.
pub const PYTHON_FRAMES_MAX: usize = 128;
/// Most thread states that are searched for the one of the sampled thread.
pub const PYTHON_THREADS_MAX: usize = 256;
/// The longest `PythonLayout::frame_bytes`.
pub const PYTHON_FRAME_BYTES: usize = 128;

/// `PythonLayout::instruction_is`: the frame's instruction is a pointer into its code.
pub const INSTRUCTION_POINTER: u32 = 0;
/// The frame's instruction is an index of 16-bit units into its code, an `int` (3.10).
pub const INSTRUCTION_INDEX: u32 = 1;

/// A bit of a frame's second word: by its marker, the frame begins (or stands for) a call of the interpreter from C.
/// The lower half of the word is the instruction's distance from the start of the code.
pub const PYTHON_ENTRY: u64 = 1 << 63;

/// One interpreter's file: byte offsets in its structures.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PythonLayout {
    /// The address of `_PyRuntime` is this minus `Mapping::to_offset` of the mapping that holds the interpreter's code.
    pub runtime: u64,
    /// `_PyRuntime.interpreters.head`.
    pub interpreters: u32,
    pub interpreter_next: u32,
    pub interpreter_threads: u32,
    pub thread_next: u32,
    /// What `pthread_self` returned in the thread.
    pub thread_id: u32,
    /// In the thread state: the pointer to the innermost frame, or to a structure that points to it.
    pub thread_frame: u32,
    /// In that structure: the pointer to the innermost frame. [`crate::ABSENT`]: `thread_frame` points to the frame
    /// itself.
    pub indirect_frame: u32,
    /// How many bytes of a frame are read: no more than the smallest frame has.
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
    /// In the structure that points to the innermost frame: the pointer to the structure before it. [`crate::ABSENT`]:
    /// there is none.
    pub indirect_previous: u32,
}

/// How the walk over Python's frames ended.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PythonEnd {
    /// No interpreter is in the stack, or the program that walks its frames could not be loaded.
    #[default]
    None = 0,
    /// The walk reached the outermost frame.
    Complete = 1,
    /// The runtime has no thread state for this thread.
    NoThread = 2,
    /// The thread state was not among the first [`PYTHON_THREADS_MAX`].
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
