//! Whole stacks compared with those of another unwinder.

mod framehop;
mod walk;
