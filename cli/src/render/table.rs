//! Tables with aligned columns, and sheets of keys and values.

use std::io::{self, Write};

use console::{measure_text_width, truncate_str};

use super::list::TableStyle;
use crate::terminal::{Colour, Terminal, visible};

/// A terminal with fewer columns has no space for a row of many cells.
pub const NARROW: usize = 80;
/// Between two columns.
const GAP: &str = "  ";

/// What stands in an empty cell.
const NO_VALUE: &str = "-";

/// Columns of names, which are cut in the middle where a terminal is too narrow: their beginnings are often the same, and
/// their ends differ.
const NAMES: [&str; 9] =
    ["NAMESPACE", "POD", "CONTAINER", "NODE", "IMAGE", "MODULE", "FUNCTION", "VICTIM", "TRIGGER"];
/// What is left of a name at least.
const NAME_MIN: usize = 8;
/// The same on a narrow terminal, where a row may become a block instead.
const NARROW_NAME_MIN: usize = 16;

/// A table whose rows are all known before it is printed: each column is as wide as its widest cell.
#[derive(Debug)]
pub struct TextTable {
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    pub fn new(header: &[&str]) -> Self {
        TextTable { header: header.iter().map(|title| visible(title)).collect(), rows: Vec::new() }
    }

    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.header.len());
        self.rows.push(
            cells.iter().map(|cell| if cell.is_empty() { NO_VALUE.into() } else { visible(cell) }).collect(),
        );
    }

    /// Prints the table. On a terminal that is too narrow, names are cut first; then lines, or each row becomes a block. In a
    /// file nothing is cut.
    pub fn print(&self, out: &mut impl Write, style: impl Into<TableStyle>) -> io::Result<()> {
        let style = style.into();
        let TableStyle { terminal, has_headers, .. } = style;
        let mut widths: Vec<usize> = (0..self.header.len())
            .map(|column| {
                let cells = self.rows.iter().map(|row| measure_text_width(&row[column]));
                cells.chain([measure_text_width(&self.header[column])]).max().unwrap_or(0)
            })
            .collect();
        if let Some(width) = terminal.width
            && !self.narrow(&mut widths, width)
            && width < NARROW
        {
            return self.print_blocks(out, style);
        }
        let line = |cells: &[String]| {
            let padded: Vec<String> = cells
                .iter()
                .zip(&widths)
                .map(|(cell, &width)| pad(&cut_middle(cell, width), width))
                .collect();
            let line = padded.join(GAP);
            cut(line.trim_end(), terminal.width)
        };
        if has_headers {
            writeln!(out, "{}", terminal.paint(Colour::Bold, &line(&self.header)))?;
        }
        for row in &self.rows {
            writeln!(out, "{}", line(row))?;
        }
        Ok(())
    }
}

impl TextTable {
    /// A block of lines for each row: a line for each cell that has a value, with its title.
    fn print_blocks(&self, out: &mut impl Write, style: TableStyle) -> io::Result<()> {
        let titles: Vec<&str> = self.header.iter().map(|title| title.trim()).collect();
        let longest = titles.iter().map(|title| measure_text_width(title)).max().unwrap_or(0);
        let keys = if style.has_headers { longest + GAP.len() } else { 0 };
        for (index, row) in self.rows.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            for (title, cell) in titles.iter().zip(row).filter(|(_, cell)| *cell != NO_VALUE) {
                let title = if style.has_headers { title } else { "" };
                entry(out, style.terminal, &pad(title, keys), cell.trim_start())?;
            }
        }
        Ok(())
    }

    /// Takes what is too much from the widest columns of names. False: it is still too much.
    fn narrow(&self, widths: &mut [usize], total: usize) -> bool {
        let least = if total < NARROW { NARROW_NAME_MIN } else { NAME_MIN };
        let gaps = GAP.len() * widths.len().saturating_sub(1);
        let mut excess = (widths.iter().sum::<usize>() + gaps).saturating_sub(total);
        while excess > 0 {
            let is_name = |at: &usize| {
                let title = self.header[*at].trim();
                NAMES.contains(&title) && widths[*at] > title.len().max(least)
            };
            let Some(widest) = (0..widths.len()).filter(is_name).max_by_key(|&at| widths[at]) else {
                return false;
            };
            widths[widest] -= 1;
            excess -= 1;
        }
        true
    }
}

/// A row of a live table: the column widths are fixed, and the last column takes the rest of the line.
pub fn fixed(cells: &[&str], widths: &[usize], total: Option<usize>) -> String {
    let mut line = String::new();
    for (&cell, &width) in cells.iter().zip(widths) {
        let cell = visible(cell);
        let cell = if total.is_some() { cut_middle(&cell, width) } else { cell };
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

/// The width of the keys of a sheet.
pub const KEYS: usize = 13;

/// Writes `key   value`, with the keys in the first column; further lines of a value are indented to the second.
pub fn field(out: &mut impl Write, terminal: Terminal, key: &str, value: &str) -> io::Result<()> {
    entry(out, terminal, &pad(key, KEYS), value)
}

/// A key, and beside it a value in as many lines as it takes.
fn entry(out: &mut impl Write, terminal: Terminal, key: &str, value: &str) -> io::Result<()> {
    let keys = measure_text_width(key);
    let width = terminal.width.map(|width| width.saturating_sub(keys).max(NAME_MIN));
    let lines = value.split('\n').flat_map(|line| broken(&visible(line), width));
    for (index, line) in lines.enumerate() {
        let key = if index == 0 { key.to_owned() } else { " ".repeat(keys) };
        writeln!(out, "{}{line}", terminal.paint(Colour::Dim, &key))?;
    }
    Ok(())
}

/// Writes a title, in as many lines as it takes.
pub fn heading(out: &mut impl Write, terminal: Terminal, text: &str) -> io::Result<()> {
    let lines = broken(&visible(text), terminal.width);
    lines.iter().try_for_each(|line| writeln!(out, "{}", terminal.paint(Colour::Bold, line)))
}

/// Writes a sentence, in as many lines as it takes.
pub fn prose(out: &mut impl Write, terminal: Terminal, text: &str) -> io::Result<()> {
    broken(&visible(text), terminal.width).iter().try_for_each(|line| writeln!(out, "{line}"))
}

pub fn pad(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(measure_text_width(text))))
}

/// Breaks a text where a terminal ends, and indents its lines by two columns.
pub fn wrap(text: &str, width: Option<usize>) -> String {
    let lines = broken(text, width.map(|width| width.saturating_sub(2)));
    lines.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// The lines of a text: broken between words, and within a word that is longer than a line.
fn broken(text: &str, width: Option<usize>) -> Vec<String> {
    let Some(width) = width.filter(|&width| measure_text_width(text) > width) else {
        return vec![text.to_owned()];
    };
    let mut lines: Vec<String> = Vec::new();
    for part in text.split_whitespace().flat_map(|word| parts(word, width)) {
        match lines.last_mut() {
            Some(line) if measure_text_width(line) + 1 + measure_text_width(part) <= width => {
                line.push(' ');
                line.push_str(part);
            }
            _ => lines.push(part.to_owned()),
        }
    }
    lines
}

/// A word in parts that are no wider than `width`.
fn parts(mut word: &str, width: usize) -> Vec<&str> {
    let mut parts = Vec::new();
    while measure_text_width(word) > width {
        // At least one character, so that this ends: a character may be two columns wide.
        let first = word.chars().next().map_or(0, char::len_utf8);
        let (part, rest) = word.split_at(truncate_str(word, width, "").len().max(first));
        parts.push(part);
        word = rest;
    }
    parts.extend((!word.is_empty()).then_some(word));
    parts
}

/// Leaves the beginning and the end of a name that is too long.
pub fn cut_middle(text: &str, width: usize) -> String {
    let all = measure_text_width(text);
    if all <= width {
        return text.to_owned();
    }
    let kept = width.saturating_sub(1);
    let start = truncate_str(text, kept - kept / 2, "");
    let mut end = text;
    while measure_text_width(end) > kept / 2 {
        let mut characters = end.chars();
        characters.next();
        end = characters.as_str();
    }
    format!("{start}…{end}")
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
        assert_eq!(printed(&table, Some(16)), "POD    checkout\nSTATE  running\n\nPOD    東京\n");
    }

    #[test]
    fn a_cell_cannot_break_out_of_its_line() {
        let mut table = TextTable::new(&["A"]);
        table.row(vec!["x\n\x1b[31m".into()]);
        assert_eq!(printed(&table, None), "A\nx\\x0a\\x1b[31m\n");
    }

    #[test]
    fn on_a_narrow_terminal_names_lose_their_middle_and_everything_fits() {
        let mut table = TextTable::new(&["   SELF", "MODULE", "FUNCTION"]);
        let function = "core::iter::traits::iterator::Iterator::try_fold::<core::ops::Range<u64>>::h0123";
        table.row(vec![" 60.0 %".into(), "burner".into(), function.into()]);
        let text = printed(&table, Some(40));
        assert!(text.lines().all(|line| measure_text_width(line) <= 40), "{text}");
        assert!(text.contains("core::iter:") && text.contains("::h0123"), "{text}");
        assert!(printed(&table, None).contains(function));
        assert_eq!(cut_middle("checkout-7d9c-x2v8p", 9), "chec…2v8p");
        assert_eq!((cut_middle("東京東京", 5).as_str(), cut_middle("ab", 1).as_str()), ("東…京", "…"));
    }

    #[test]
    fn lines_end_where_the_terminal_does() {
        assert_eq!(wrap("one two three", Some(10)), "  one two\n  three");
        assert_eq!(wrap("one two three", None), "  one two three");
        assert_eq!(wrap("a-word-that-is-longer than", Some(10)), "  a-word-t\n  hat-is-l\n  onger\n  than");
        assert_eq!(broken("東京東京 x", Some(5)), ["東京", "東京", "x"]);
        assert_eq!(
            (broken("東", Some(1)), broken("", Some(1))),
            (vec!["東".to_owned()], vec![String::new()])
        );
    }

    #[test]
    fn on_a_terminal_without_space_for_all_columns_a_row_is_a_block() {
        let mut table = TextTable::new(&["POD", "RESTARTS", "KUBERNETES SAYS", "KERNEL SAYS"]);
        table.row(vec![
            "shop/cart-7d9c5b6f4-x2v8p".into(),
            "3".into(),
            "OOMKilled (137)".into(),
            String::new(),
        ]);
        table.row(vec!["shop/b".into(), "1".into(), String::new(), "SIGKILL from kubelet[812]".into()]);
        assert_eq!(
            printed(&table, Some(30)),
            "\
POD              shop/cart-7d9
                 c5b6f4-x2v8p
RESTARTS         3
KUBERNETES SAYS  OOMKilled
                 (137)

POD              shop/b
RESTARTS         1
KERNEL SAYS      SIGKILL from
                 kubelet[812]
"
        );
    }

    #[test]
    fn fixed_columns_are_cut_on_terminals_only() {
        let cells = ["finance/checkout-api", "a detail that is long enough to be cut"];
        let cut = fixed(&cells, &[8], Some(44));
        assert_eq!(cut, "fina…api  a detail that is long enough to b…");
        assert_eq!(fixed(&cells, &[8], None), "finance/checkout-api  a detail that is long enough to be cut");
        assert!(fixed(&cells, &[8], Some(20)).ends_with("to be cut"));
    }
}
