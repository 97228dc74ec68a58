//! Python's functions in a stack: which file is an interpreter, what its code objects are called, and where its frames
//! go among the native ones.
//!
//! Must not know: aya, pods, rings.
//!
//! ```text
//! file ─ interpreter (symbols, version → offsets) ─→ kernel side ─→ (code object, instruction) pairs in a sample
//! pairs ─ codes (the process's memory) ─→ words, counted as part of the stack ─ merge ─→ frames
//! ```
//!
//! Nothing here trusts the process: its code objects are read with bounds, must be of the interpreter's own type for
//! code, and their names are escaped where they are read.

pub use podopsy_model::profile::PYTHON_MODULE as MODULE;

mod codes;
mod interpreter;
mod lines;
mod merge;
mod offsets;
mod read;

pub use codes::{Codes, Word};
pub use interpreter::{Interpreter, Interpreters, interpreter};
pub(crate) use merge::{Merge, is_interpreter};
