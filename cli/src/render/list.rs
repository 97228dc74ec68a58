//! A list in each format that needs no table of its own.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::{Value, json};

use super::table::TextTable;
use crate::args::{CustomColumn, OutputArgs, OutputFormat};
use crate::jsonpath::{JsonPath, text_of};
use crate::terminal::{Terminal, visible};

/// What kubectl prints where a column's path finds nothing.
const NONE: &str = "<none>";

/// How a table is printed.
#[derive(Clone, Copy, Debug)]
pub struct TableStyle {
    pub terminal: Terminal,
    /// Also the less important columns, and nothing is cut.
    pub is_wide: bool,
    pub has_headers: bool,
}

impl TableStyle {
    pub fn new(terminal: Terminal, args: &OutputArgs) -> TableStyle {
        let is_wide = args.output == OutputFormat::Wide;
        let terminal = if is_wide { Terminal { width: None, ..terminal } } else { terminal };
        TableStyle { terminal, is_wide, has_headers: !args.no_headers }
    }
}

impl From<Terminal> for TableStyle {
    fn from(terminal: Terminal) -> TableStyle {
        TableStyle { terminal, is_wide: false, has_headers: true }
    }
}

/// Prints names, a template or columns. False: the format is one that the command prints itself.
pub fn print<T: Serialize>(
    out: &mut impl Write,
    terminal: Terminal,
    args: &OutputArgs,
    items: &[T],
    name: impl Fn(&T) -> Option<String>,
) -> io::Result<bool> {
    match &args.output {
        OutputFormat::Name => {
            let mut seen = BTreeSet::new();
            let names = items.iter().filter_map(name).map(|name| visible(&name));
            for name in names.filter(|name| seen.insert(name.clone())) {
                writeln!(out, "{name}")?;
            }
        }
        OutputFormat::JsonPath(template) => {
            let list = json!({ "items": values(items)? });
            write!(out, "{}", template.render(&list))?;
        }
        OutputFormat::CustomColumns(columns) => {
            let style = TableStyle::new(terminal, args);
            custom_columns(out, style, columns, &values(items)?)?;
        }
        OutputFormat::Table | OutputFormat::Wide | OutputFormat::Json | OutputFormat::Yaml => {
            return Ok(false);
        }
    }
    Ok(true)
}

fn values<T: Serialize>(items: &[T]) -> io::Result<Vec<Value>> {
    items.iter().map(|item| serde_json::to_value(item).map_err(io::Error::from)).collect()
}

fn custom_columns(
    out: &mut impl Write,
    style: TableStyle,
    columns: &[CustomColumn],
    items: &[Value],
) -> io::Result<()> {
    let headers: Vec<&str> = columns.iter().map(|column| column.header.as_str()).collect();
    let mut table = TextTable::new(&headers);
    for item in items {
        let cell = |column: &CustomColumn| {
            let found: Vec<String> = column.path.find(item, item).into_iter().map(text_of).collect();
            if found.is_empty() { NONE.to_owned() } else { found.join(",") }
        };
        table.row(columns.iter().map(cell).collect());
    }
    table.print(out, style)
}

/// Sorts by what a path finds first in each item: numbers by size, everything else as text. Items of equal value keep their
/// order, and those without a value come first.
pub fn sort<T: Serialize>(items: &mut Vec<T>, path: Option<&JsonPath>) -> io::Result<()> {
    let Some(path) = path else { return Ok(()) };
    let keys = values(items)?;
    let key = |item: &Value| path.find(item, item).first().map(|found| (*found).clone());
    let mut keyed: Vec<(Option<Value>, T)> = keys.iter().map(key).zip(items.drain(..)).collect();
    keyed.sort_by(|(a, _), (b, _)| compare(a.as_ref(), b.as_ref()));
    items.extend(keyed.into_iter().map(|(_, item)| item));
    Ok(())
}

fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            a.as_f64().unwrap_or_default().total_cmp(&b.as_f64().unwrap_or_default())
        }
        (Some(a), Some(b)) => text_of(a).cmp(&text_of(b)),
        (a, b) => a.is_some().cmp(&b.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(format: &str) -> OutputArgs {
        OutputArgs { output: format.parse().unwrap(), no_headers: false, sort_by: None }
    }

    fn printed(args: &OutputArgs) -> String {
        let items = [json!({"n": "b", "k": 10}), json!({"n": "a\n", "k": 9}), json!({"n": "b"})];
        let mut out = Vec::new();
        let name = |item: &Value| item["n"].as_str().map(str::to_owned);
        assert!(print(&mut out, Terminal::PLAIN, args, &items, name).unwrap());
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn names_columns_and_templates_are_printed() {
        assert_eq!(printed(&args("name")), "b\na\\x0a\n", "each name once");
        assert_eq!(printed(&args("jsonpath={.items[*].k}")), "10 9");
        let columns = args("custom-columns=NAME:.n,SIZE:.k");
        assert_eq!(printed(&columns), "NAME   SIZE\nb      10\na\\x0a  9\nb      <none>\n");
        assert!(printed(&OutputArgs { no_headers: true, ..columns }).starts_with("b "));
        assert!(!print(&mut Vec::new(), Terminal::PLAIN, &args("wide"), &[1], |_| None).unwrap());
    }

    #[test]
    fn items_are_sorted_by_number_or_text() {
        let mut items = vec![json!({"n": "b", "k": 10}), json!({"n": "a", "k": 9}), json!({"n": "c"})];
        let names =
            |items: &[Value]| items.iter().map(|item| item["n"].as_str().unwrap()).collect::<String>();
        sort(&mut items, Some(&"{.k}".parse().unwrap())).unwrap();
        assert_eq!(names(&items), "cab");
        sort(&mut items, Some(&".n".parse().unwrap())).unwrap();
        assert_eq!(names(&items), "abc");
    }
}
