//! The rows of `podopsy top` as a table.

use std::io::{self, Write};

use podopsy_top::ContainerRow;
use podopsy_top::cells::Column;

use super::list::TableStyle;
use super::table::TextTable;

pub fn print(out: &mut impl Write, style: TableStyle, rows: &[ContainerRow]) -> io::Result<()> {
    let has_node = rows.iter().any(|row| row.node.is_some());
    let has_container = rows.iter().any(|row| !row.container.is_empty());
    let is_shown = |column: &Column| match column {
        Column::Node => has_node,
        Column::Container => has_container,
        // A picture for people, and not for pipes.
        Column::Trend => style.is_wide,
        _ => true,
    };
    let columns: Vec<Column> = Column::ALL.into_iter().filter(is_shown).collect();
    let titles: Vec<&str> = columns.iter().map(|column| column.title()).collect();
    let mut table = TextTable::new(&titles);
    for row in rows {
        table.row(columns.iter().map(|column| column.text(row)).collect());
    }
    table.print(out, style)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::Terminal;

    #[test]
    fn a_row_has_what_is_known_and_no_control_characters() {
        let row = ContainerRow {
            namespace: "shop".into(),
            pod: "cart\x1b[2J".into(),
            container: "app".into(),
            cpu_millis: Some(120),
            ..ContainerRow::default()
        };
        let mut out = Vec::new();
        print(&mut out, Terminal::PLAIN.into(), &[row]).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
POD               CONTAINER  CPU   THROTTLED  MEMORY  LIMIT  %  LIMIT IN  DNS ERR/S  KILLS  RESTARTS
shop/cart\\x1b[2J  app        120m  -          -       -      -  -         -          -      -
"
        );
    }
}
