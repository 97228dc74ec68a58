//! Finds out which file is a Python interpreter, and where its structures keep what podopsy reads.
//!
//! Must not depend on: processes.

mod interpreter;
mod offsets;

pub use interpreter::{Interpreter, detect_interpreter};
pub use offsets::{CodeLayout, layouts_for_version};
