//! Bytes → records, one probe a file. Pure: no I/O, no clock, no panic on any input.
//!
//! Must not know: aya, pods, output.

pub mod dns;
mod exec;
mod fields;
mod oncpu;
mod oom;
mod signal;

pub use exec::exec;
pub use fields::BadRecord;
pub use oncpu::{Python, Stack, sample, table_request};
pub use oom::{OomDecoded, oom};
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub use signal::{SentBy, SigkillDecoded, sigkill, sigkill_record};
