//! What the victims share: arguments, name lookup, termination, DNS messages. Everything else is in the one file of
//! each program, so that its stacks are easy to read.

pub mod args;
pub mod lookup;
pub mod term;
pub mod wire;
