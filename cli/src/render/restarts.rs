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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terminal::Terminal;

    #[test]
    fn the_kernels_word_stands_beside_kubernetes() {
        let row = ContainerRestarts {
            node: None,
            namespace: "shop".into(),
            pod: "orders".into(),
            container: "api".into(),
            restarts: 3,
            state: "running".into(),
            ended_at: "2026-03-01T03:04:05.678Z".parse().ok(),
            kubernetes: Some("Error (137)".into()),
            kernel: Some("SIGKILL from kubelet[812]".into()),
            id: Some("3f2a-k7-9".into()),
            oom_kills: 0,
            sigkills: 2,
        };
        let mut out = Vec::new();
        print(&mut out, TableStyle { is_wide: true, ..Terminal::PLAIN.into() }, &[row]).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
POD          CONTAINER  RESTARTS  LAST END              KUBERNETES SAYS  THE KERNEL SAYS            ID         STATE    OOM KILLS  SIGKILLS
shop/orders  api        3         2026-03-01 03:04:05Z  Error (137)      SIGKILL from kubelet[812]  3f2a-k7-9  running  0          2
"
        );
    }
}
