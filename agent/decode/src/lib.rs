//! Decodes the records of the kernel side: bytes → typed records, one probe a file. `dns` also decodes the DNS messages
//! that a record carries.
//!
//! Everything is pure: no I/O, no clock, and no panic on any input. Records are read as the types of `podopsy_wire`, by
//! their derives. Must not depend on: aya, pods, output.

mod cpu;
pub mod dns;
mod exec;
mod oom;
mod read;
mod sigkill;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub use cpu::{Python, Stack, sample, table_request};
pub use exec::exec;
pub use oom::{OomDecoded, oom};
pub use read::BadRecord;
pub use sigkill::{SentBy, SigkillDecoded, sigkill, sigkill_record};
