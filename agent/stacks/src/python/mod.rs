//! Python's functions in a stack: finds out which file is an interpreter, reads the names of its code objects, and places
//! its frames among the native ones.
//!
//! Must not depend on: aya, pods, rings.
//!
//! ```text
//! file ─ interpreter (symbols, version → offsets) ─→ kernel side ─→ (code object, instruction) pairs in a sample
//! pairs ─ functions (the process's memory) ─→ packed frames, counted as part of the stack ─ merge ─→ frames
//! ```
//!
//! Nothing here trusts the process. Reads of its memory are bounded, a code object must have the interpreter's own type
//! for code, and names are escaped where they are read.

pub use podopsy_model::profile::PYTHON_MODULE as MODULE;

mod code_object;
mod functions;
mod interpreter;
mod lines;
mod merge;
mod offsets;

pub use functions::{PackedFrame, PythonFunctions};
pub use interpreter::{Interpreter, InterpreterRegistry, detect_interpreter};
pub(crate) use merge::{CallFrames, PythonStack, is_interpreter_frame};
