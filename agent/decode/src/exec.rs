//! Programs that start.

use podopsy_wire::Exec;

use super::read::{self, BadRecord};

/// Returns the process id of an [`Exec`].
pub fn exec(bytes: &[u8]) -> Result<u32, BadRecord> {
    read::whole::<Exec>("exec", bytes).map(|exec| exec.pid)
}
