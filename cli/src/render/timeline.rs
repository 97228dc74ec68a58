//! A timeline, one line for each entry.

use std::io::{self, Write};

use super::list::TableStyle;
use super::table::{NARROW, TextTable, cut, wrap};
use super::units;
use crate::terminal::{Colour, Terminal, visible};
use crate::timeline::{EntryKind, TimelineEntry};

pub fn print(out: &mut impl Write, style: TableStyle, entries: &[TimelineEntry]) -> io::Result<()> {
    let first = entries.first().map(|entry| (&entry.namespace, &entry.pod));
    let has_one_pod = entries.iter().all(|entry| Some((&entry.namespace, &entry.pod)) == first);
    if let Some(width) = style.terminal.width.filter(|&width| width < NARROW) {
        return entries.iter().try_for_each(|entry| print_narrow(out, style.terminal, width, entry));
    }
    let mut header = vec!["TIME", "WHAT", "POD", "CONTAINER", "HOW", "DETAIL"];
    let shows = |title: &str| match title {
        "POD" => !has_one_pod || style.is_wide,
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

/// Some lines for an entry: when and what, whose, and the detail.
fn print_narrow(
    out: &mut impl Write,
    terminal: Terminal,
    width: usize,
    entry: &TimelineEntry,
) -> io::Result<()> {
    let first = format!("{} {}", units::date(entry.time), entry.kind.as_str());
    writeln!(out, "{}", terminal.paint(Colour::Bold, &cut(&first, Some(width))))?;
    let container = entry.container.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
    let owner = visible(&format!("{}/{}{container}", entry.namespace, entry.pod));
    writeln!(out, "{}", wrap(&owner, Some(width)))?;
    let text = format!("{}: {}", entry.how.as_str(), detail(entry));
    writeln!(out, "{}", wrap(&visible(&text), Some(width)))
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
    writeln!(out, "{}", cut(&visible(&line), terminal.width))?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::timeline::EntryEvidence;

    fn entry(pod: &str) -> TimelineEntry {
        TimelineEntry {
            time: Timestamp::from_second(1_800_000_000).unwrap(),
            until: None,
            kind: EntryKind::Restart,
            how: EntryEvidence::Observed,
            namespace: "shop".into(),
            pod: pod.into(),
            container: Some("api".into()),
            id: None,
            text: "restarted for the 3rd time\u{1b}[2J".into(),
            correlated: Some("12 s after the oom-kill 3f2a-7".into()),
        }
    }

    fn printed(width: Option<usize>, entries: &[TimelineEntry]) -> String {
        let mut out = Vec::new();
        print(&mut out, Terminal { width, colour: false }.into(), entries).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_pod_has_a_column_if_there_are_several() {
        assert_eq!(
            printed(None, &[entry("cart-1")]),
            "\
TIME                  WHAT     CONTAINER  HOW       DETAIL
2027-01-15 08:00:00Z  restart  api        observed  restarted for the 3rd time\\x1b[2J (correlated: 12 s after the oom-kill 3f2a-7)
"
        );
        assert!(printed(None, &[entry("cart-1"), entry("cart-2")]).contains("  shop/cart-2  api "));
    }

    #[test]
    fn on_a_narrow_terminal_an_entry_takes_some_lines_that_fit() {
        assert_eq!(
            printed(Some(40), &[entry("cart-api-7d9c5b6f4-x2v8p-and-more")]),
            "\
2027-01-15 08:00:00Z restart
  shop/cart-api-7d9c5b6f4-x2v8p-and-more
  /api
  observed: restarted for the 3rd
  time\\x1b[2J (correlated: 12 s after
  the oom-kill 3f2a-7)
"
        );
    }
}
