//! Formats results as text. Writes only to the writer that it gets, so that tests can compare literal strings.

pub mod autopsy;
mod charged;
pub mod diff;
pub mod dns;
pub mod doctor;
pub mod event;
pub mod growth;
mod heap;
pub mod inspect;
pub mod list;
pub mod net;
pub mod oom;
pub mod pods;
pub mod report;
pub mod restarts;
pub mod sigkill;
pub mod table;
pub mod timeline;
pub mod top;
pub mod units;
pub mod usage;

use std::collections::BTreeMap;
use std::io::{self, Write};

use podopsy_model::Event;
use serde::Serialize;

use crate::args::SheetFormat;
use crate::terminal::Terminal;

/// Writes one indented JSON document and a newline.
pub fn json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// Writes one YAML document.
pub fn yaml(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let text = serde_yaml_ng::to_string(value).map_err(io::Error::other)?;
    out.write_all(text.as_bytes())
}

/// Prints one thing as data. False: the format is text, which the command prints itself.
pub fn data(out: &mut impl Write, format: &SheetFormat, value: &impl Serialize) -> io::Result<bool> {
    match format {
        SheetFormat::Text => return Ok(false),
        SheetFormat::Json => json(out, value)?,
        SheetFormat::Yaml => yaml(out, value)?,
        SheetFormat::JsonPath(template) => {
            write!(out, "{}", template.render(&serde_json::to_value(value)?))?;
        }
    }
    Ok(true)
}

/// Prints the autopsy of an OOM kill, or of another SIGKILL.
pub fn kill(out: &mut impl Write, terminal: Terminal, event: &Event) -> io::Result<()> {
    match event.sigkill() {
        Some(sigkill) => sigkill::print(out, terminal, event, sigkill),
        None => autopsy::print(out, terminal, event),
    }
}

/// The loss counters as text, in the same form for every command.
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
    fn zero_losses_are_reported_as_nothing_lost() {
        assert_eq!(losses(&BTreeMap::new()), "nothing lost");
        let some = [("dns_ring".to_owned(), 3), ("oom_ring".to_owned(), 0)].into();
        assert_eq!(losses(&some), "lost: dns_ring 3");
    }
}
