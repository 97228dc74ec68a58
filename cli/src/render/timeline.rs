//! A timeline, one line for each entry.

use std::io::{self, Write};

use super::list::TableStyle;
use super::table::TextTable;
use super::units;
use crate::terminal::Terminal;
use crate::timeline::{EntryKind, TimelineEntry};

/// Below this width, the pod and the evidence are left out of a line.
const NARROW: usize = 80;

pub fn print(out: &mut impl Write, style: TableStyle, entries: &[TimelineEntry]) -> io::Result<()> {
    let first = entries.first().map(|entry| (&entry.namespace, &entry.pod));
    let has_one_pod = entries.iter().all(|entry| Some((&entry.namespace, &entry.pod)) == first);
    let is_narrow = style.terminal.width.is_some_and(|width| width < NARROW);
    let mut header = vec!["TIME", "WHAT", "POD", "CONTAINER", "HOW", "DETAIL"];
    let shows = |title: &str| match title {
        "POD" => !has_one_pod || style.is_wide,
        "CONTAINER" | "HOW" => !is_narrow,
        _ => true,
    };
    header.retain(|title| shows(title));
    let mut table = TextTable::new(&header);
    for entry in entries {
        let cells = [
            ("TIME", units::date(entry.time)),
            ("WHAT", entry.kind.as_str().to_owned()),
            ("POD", format!("{}/{}", entry.namespace, entry.pod)),
            ("CONTAINER", entry.container.clone().unwrap_or_default()),
            ("HOW", entry.how.as_str().to_owned()),
            ("DETAIL", detail(entry)),
        ];
        let cells = cells.into_iter().filter(|(title, _)| header.contains(title));
        table.row(cells.map(|(_, cell)| cell).collect());
    }
    table.print(out, style)
}

fn detail(entry: &TimelineEntry) -> String {
    let id = entry.id.as_ref().filter(|_| entry.kind != EntryKind::Correlation);
    let id = id.map(|id| format!("{id}: ")).unwrap_or_default();
    let related = entry.correlated.as_ref();
    let related = related.map(|text| format!(" (correlated: {text})")).unwrap_or_default();
    format!("{id}{}{related}", entry.text)
}

/// One entry of a timeline that goes on.
pub fn print_line(out: &mut impl Write, terminal: Terminal, entry: &TimelineEntry) -> io::Result<()> {
    let container = entry.container.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
    let line = format!(
        "{}  {}  {}/{}{container}  {}: {}",
        units::date(entry.time),
        entry.kind.as_str(),
        entry.namespace,
        entry.pod,
        entry.how.as_str(),
        detail(entry)
    );
    writeln!(out, "{}", super::table::cut(&crate::terminal::visible(&line), terminal.width))?;
    out.flush()
}
