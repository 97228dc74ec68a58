//! Folded stacks.

use std::io::Write;

use crate::model::profile::Profile;

/// Writes `profile` as folded stacks, one line a stack.
pub fn write(_profile: &Profile, _out: impl Write) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
