//! Containers that have restarted, a row each.

use std::io::{self, Write};

use super::list::TableStyle;
use super::table::TextTable;
use super::units;
use crate::cmd::restarts::ContainerRestarts;

pub fn print(out: &mut impl Write, style: TableStyle, rows: &[ContainerRestarts]) -> io::Result<()> {
    let has_node = rows.iter().any(|row| row.node.is_some());
    let mut header = if has_node { vec!["NODE"] } else { Vec::new() };
    header.extend(["POD", "CONTAINER", "RESTARTS", "LAST END", "KUBERNETES SAYS", "THE KERNEL SAYS"]);
    if style.is_wide {
        header.extend(["ID", "STATE", "OOM KILLS", "SIGKILLS"]);
    }
    let mut table = TextTable::new(&header);
    for row in rows {
        let mut cells: Vec<String> = if has_node { row.node.iter().cloned().collect() } else { Vec::new() };
        cells.extend([
            format!("{}/{}", row.namespace, row.pod),
            row.container.clone(),
            row.restarts.to_string(),
            row.ended_at.map(units::date).unwrap_or_default(),
            row.kubernetes.clone().unwrap_or_default(),
            row.kernel.clone().unwrap_or_default(),
        ]);
        if style.is_wide {
            let id = row.id.clone().unwrap_or_default();
            cells.extend([id, row.state.clone(), row.oom_kills.to_string(), row.sigkills.to_string()]);
        }
        table.row(cells);
    }
    table.print(out, style)
}
