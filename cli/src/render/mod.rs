//! Answers to text. No I/O but the writer that is handed in, so that a test can compare literal strings.

pub mod autopsy;
pub mod diff;
pub mod dns;
pub mod doctor;
pub mod event;
pub mod growth;
pub mod inspect;
pub mod oom;
pub mod pods;
pub mod sigkill;
pub mod table;
pub mod top;
pub mod units;

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;

/// One JSON document, indented, and a newline.
pub fn json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// One YAML document.
pub fn yaml(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let text = serde_yaml_ng::to_string(value).map_err(io::Error::other)?;
    out.write_all(text.as_bytes())
}

/// Loss counters in words; the same everywhere.
pub fn losses(losses: &BTreeMap<String, u64>) -> String {
    let lost: Vec<String> = losses
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(name, count)| format!("{name} {count}"))
        .collect();
    if lost.is_empty() { "nothing lost".to_owned() } else { format!("lost: {}", lost.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_of_nothing_are_said_too() {
        assert_eq!(losses(&BTreeMap::new()), "nothing lost");
        let some = [("dns_ring".to_owned(), 3), ("oom_ring".to_owned(), 0)].into();
        assert_eq!(losses(&some), "lost: dns_ring 3");
    }
}
