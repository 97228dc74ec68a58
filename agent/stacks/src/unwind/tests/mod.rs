//! Rows and stacks compared with what other tools find in the same files and processes.

mod framehop;
mod readelf;
mod walk;
