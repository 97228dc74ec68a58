//! A flame graph.

use std::io::Write;

use crate::model::profile::Profile;

/// Writes `profile` as a flame graph (SVG).
pub fn write(_profile: &Profile, _out: impl Write) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
