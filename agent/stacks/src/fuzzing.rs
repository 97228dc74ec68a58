//! What is private in this crate and has a fuzz target.

use std::fs::File;

use podopsy_worker::CodeLayout;

pub use crate::python::fuzzing::line_at;
pub use crate::symbolize::maps::fuzzing::{maps, mounts, stat};

/// Reads the function of the code object at `address`, in a file that stands for the memory of a process. Returns its
/// name and its file.
pub fn python_function(
    memory: File,
    address: u64,
    code_type: u64,
    layout: &CodeLayout,
) -> Option<(String, String)> {
    crate::python::fuzzing::function(memory, address, code_type, layout)
}
