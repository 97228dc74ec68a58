//! Why an address stayed without a name, counted by reason.
//!
//! Must not know: files, ELF, processes. The names are part of the output (profiles, metrics): change them with care.

use std::collections::BTreeMap;

/// Counters by name. One count is one event (an address looked up, a file refused), never a sample.
#[derive(Debug, Default)]
pub(super) struct Losses(BTreeMap<&'static str, u64>);

impl Losses {
    pub fn add(&mut self, reason: &'static str) {
        *self.0.entry(reason).or_default() += 1;
    }

    pub fn all(&self) -> BTreeMap<String, u64> {
        self.0.iter().map(|(&name, &count)| (name.to_string(), count)).collect()
    }
}
