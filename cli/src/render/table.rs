//! Tables with aligned columns, and sheets of keys and values.

use std::io::{self, Write};

use console::{measure_text_width, truncate_str};

use crate::terminal::{Colour, Terminal, visible};

/// Between two columns.
const GAP: &str = "  ";

/// A table whose rows are all known before it is printed: each column is as wide as its widest cell.
#[derive(Debug)]
pub struct TextTable {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    pub fn new(header: &[&'static str]) -> Self {
        TextTable { header: header.to_vec(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.header.len());
        self.rows.push(
            cells.iter().map(|cell| if cell.is_empty() { "-".into() } else { visible(cell) }).collect(),
        );
    }

    /// Prints the table. Lines that are too long for a terminal are cut; in a file nothing is.
    pub fn print(&self, out: &mut impl Write, terminal: Terminal) -> io::Result<()> {
        let widths: Vec<usize> = (0..self.header.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| measure_text_width(&row[column]));
                cells.chain([self.header[column].len()]).max().unwrap_or(0)
            })
            .collect();
        let header: Vec<String> = self.header.iter().map(|&title| title.to_owned()).collect();
        let line = |cells: &[String]| {
            let padded: Vec<String> =
                cells.iter().zip(&widths).map(|(cell, &width)| pad(cell, width)).collect();
            let line = padded.join(GAP);
            cut(line.trim_end(), terminal.width)
        };
        writeln!(out, "{}", terminal.paint(Colour::Bold, &line(&header)))?;
        for row in &self.rows {
            writeln!(out, "{}", line(row))?;
        }
        Ok(())
    }
}

/// A row of a live table: the column widths are fixed, and the last column takes the rest of the line.
pub fn fixed(cells: &[&str], widths: &[usize], total: Option<usize>) -> String {
    let mut line = String::new();
    for (&cell, &width) in cells.iter().zip(widths) {
        let cell = visible(cell);
        let cell = if total.is_some() { cut(&cell, Some(width)) } else { cell };
        line.push_str(&pad(&cell, width));
        line.push_str(GAP);
    }
    let used = measure_text_width(&line);
    let rest: String = cells[widths.len()..].iter().map(|cell| visible(cell)).collect();
    // With less than 30 columns left, the terminal wraps the last cell: it is the most important one and is not cut.
    let width = total.and_then(|total| total.checked_sub(used)).filter(|&width| width >= 30);
    line.push_str(&cut(&rest, width));
    line.trim_end().to_owned()
}

/// Writes `key   value`, with the keys in the first column; further lines of a value are indented to the second.
pub fn field(out: &mut impl Write, terminal: Terminal, key: &str, value: &str) -> io::Result<()> {
    const KEYS: usize = 13;
    for (index, line) in value.split('\n').enumerate() {
        let key = if index == 0 { key } else { "" };
        writeln!(out, "{}{}", terminal.paint(Colour::Dim, &pad(key, KEYS)), visible(line))?;
    }
    Ok(())
}

pub fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(measure_text_width(text))))
}

pub fn cut(text: &str, width: Option<usize>) -> String {
    match width {
        Some(width) => truncate_str(text, width, "…").into_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(table: &TextTable, width: Option<usize>) -> String {
        let mut out = Vec::new();
        table.print(&mut out, Terminal { width, colour: false }).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = TextTable::new(&["POD", "STATE"]);
        table.row(vec!["checkout".into(), "running".into()]);
        table.row(vec!["東京".into(), String::new()]);
        assert_eq!(printed(&table, None), "POD       STATE\ncheckout  running\n東京      -\n");
        assert_eq!(printed(&table, Some(12)), "POD       S…\ncheckout  r…\n東京      -\n");
    }

    #[test]
    fn a_cell_cannot_break_out_of_its_line() {
        let mut table = TextTable::new(&["A"]);
        table.row(vec!["x\n\x1b[31m".into()]);
        assert_eq!(printed(&table, None), "A\nx\\x0a\\x1b[31m\n");
    }

    #[test]
    fn fixed_columns_are_cut_on_terminals_only() {
        let cells = ["finance/checkout-api", "a detail that is long enough to be cut"];
        let cut = fixed(&cells, &[8], Some(44));
        assert_eq!(cut, "finance…  a detail that is long enough to b…");
        assert_eq!(fixed(&cells, &[8], None), "finance/checkout-api  a detail that is long enough to be cut");
        assert!(fixed(&cells, &[8], Some(20)).ends_with("to be cut"));
    }
}
