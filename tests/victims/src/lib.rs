//! What the victims share: arguments, sizes, termination. Everything else stays in the one file of each
//! program, so that a stack from it is easy to read.

pub mod args;
pub mod lookup;
pub mod term;
pub mod wire;
