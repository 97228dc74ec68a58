//! Python's functions in a stack: numbers the interpreters that were found, reads the names of code objects, and places
//! Python's frames among the native ones.
//!
//! Must not depend on: aya, pods, rings.
//!
//! ```text
//! file ─ parsing worker (symbols, version → offsets) ─ registry (number) ─→ kernel side ─→ (code object, instruction) pairs in a sample
//! pairs ─ functions (the process's memory) ─→ packed frames, counted as part of the stack ─ merge ─→ frames
//! ```
//!
//! Nothing here trusts the process. Reads of its memory are bounded, a code object must have the interpreter's own type
//! for code, and names are escaped where they are read.

pub use podopsy_model::profile::PYTHON_MODULE as MODULE;

mod code_object;
#[cfg(feature = "fuzzing")]
pub(crate) mod fuzzing {
    pub use super::code_object::fuzzing::function;
    pub use super::lines::fuzzing::line_at;
}
mod functions;
mod lines;
mod merge;
mod registry;

pub use functions::{PackedFrame, PythonFunctions};
pub(crate) use merge::{CallFrames, PythonStack, is_interpreter_frame, is_switching_frame};
pub(crate) use registry::InterpreterNumber;
pub use registry::InterpreterRegistry;
