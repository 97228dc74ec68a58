//! Whole stacks compared with those of another unwinder.

mod corpus;
mod framehop;
mod walk;
