//! Programs that start.

use super::fields::{BadRecord, Fields};

/// The process id of an [`podopsy_wire::Exec`].
pub fn exec(bytes: &[u8]) -> Result<u32, BadRecord> {
    Fields::new("exec", bytes).u32()
}
