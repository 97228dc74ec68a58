//! Test × kernel: what passed, what failed, and what a kernel cannot do.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use super::unsupported::{self, Entry};

/// What became of one test on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    Pass(Duration),
    /// It failed, and is run once more at the end: with nothing after it, a failure.
    FirstTry(String),
    /// It failed, and passed when it was run once more.
    SecondTry(Duration),
    Fail(String),
    /// It failed, and that is known: the reason from the list.
    Unsupported(&'static Entry),
}

/// The table, filled as verdicts come in.
#[derive(Debug, Default)]
pub struct Table {
    tests: Vec<String>,
    /// Name and traits, in order.
    columns: Vec<Heading>,
    cells: BTreeMap<(String, String), Cell>,
}

/// A column's head.
#[derive(Clone, Debug)]
pub struct Heading {
    pub name: String,
    /// What the list of unsupported tests may name: the kernel's name, `cgroup v1`.
    pub traits: Vec<String>,
}

impl Table {
    pub fn new(tests: Vec<String>, columns: Vec<Heading>) -> Table {
        Table { tests, columns, cells: BTreeMap::new() }
    }

    pub fn pass(&mut self, column: &str, test: &str, took: Duration) -> Cell {
        let cell = match self.known(column, test) {
            // The list must not outlive its reasons.
            Some(entry) => Cell::Fail(format!("passes, although listed as unsupported: {}", entry.why)),
            None if self.was_tried(column, test) => Cell::SecondTry(took),
            None => Cell::Pass(took),
        };
        self.put(column, test, cell)
    }

    pub fn fail(&mut self, column: &str, test: &str, reason: &str) -> Cell {
        let cell = match self.known(column, test) {
            Some(entry) => Cell::Unsupported(entry),
            None if self.was_tried(column, test) => Cell::Fail(reason.to_owned()),
            None => Cell::FirstTry(reason.to_owned()),
        };
        self.put(column, test, cell)
    }

    /// No verdict that stays: it has none, or that of a first try.
    pub fn is_open(&self, column: &str, test: &str) -> bool {
        let cell = self.cells.get(&(test.to_owned(), column.to_owned()));
        matches!(cell, None | Some(Cell::FirstTry(_)))
    }

    fn was_tried(&self, column: &str, test: &str) -> bool {
        self.cells.contains_key(&(test.to_owned(), column.to_owned()))
    }

    fn put(&mut self, column: &str, test: &str, cell: Cell) -> Cell {
        self.cells.insert((test.to_owned(), column.to_owned()), cell.clone());
        cell
    }

    fn known(&self, column: &str, test: &str) -> Option<&'static Entry> {
        let traits = &self.columns.iter().find(|heading| heading.name == column)?.traits;
        unsupported::find(test, traits)
    }

    /// What is not there is a failure, unless it was not asked for.
    fn cell(&self, column: &Heading, test: &str) -> Cell {
        if let Some(cell) = self.cells.get(&(test.to_owned(), column.name.clone())) {
            return cell.clone();
        }
        match unsupported::find(test, &column.traits) {
            Some(entry) if entry.is_left_out() => Cell::Unsupported(entry),
            _ => Cell::Fail("no verdict".to_owned()),
        }
    }

    /// How many kernels.
    pub fn width(&self) -> usize {
        self.columns.len()
    }

    /// Prints it, and the closing line of libtest.
    pub fn conclude(&self) {
        let (passed, failed, unsupported) = self.counts();
        let word = if failed == 0 { "ok" } else { "FAILED" };
        println!("\n{self}");
        println!("test result: {word}. {passed} passed; {failed} failed; {unsupported} ignored");
    }

    /// Passed, failed, unsupported.
    pub fn counts(&self) -> (usize, usize, usize) {
        let (mut passed, mut failed, mut unsupported) = (0, 0, 0);
        for test in &self.tests {
            for column in &self.columns {
                match self.cell(column, test) {
                    Cell::Pass(_) | Cell::SecondTry(_) => passed += 1,
                    Cell::Fail(_) | Cell::FirstTry(_) => failed += 1,
                    Cell::Unsupported(_) => unsupported += 1,
                }
            }
        }
        (passed, failed, unsupported)
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.tests.iter().map(String::len).max().unwrap_or(0);
        let width = |column: &Heading| column.name.len().max(7);
        write!(f, "{:first$}", "")?;
        for column in &self.columns {
            write!(f, "  {:>1$}", column.name, width(column))?;
        }
        writeln!(f)?;
        let mut notes: Vec<String> = Vec::new();
        for test in &self.tests {
            write!(f, "{test:first$}")?;
            for column in &self.columns {
                let text = match self.cell(column, test) {
                    Cell::Pass(took) => format!("{:.1} s", took.as_secs_f64()),
                    Cell::SecondTry(took) => {
                        notes.push(format!("second try   {test} on {}: it failed once", column.name));
                        format!("({:.1} s)", took.as_secs_f64())
                    }
                    Cell::Fail(reason) | Cell::FirstTry(reason) => {
                        notes.push(format!("FAIL         {test} on {}: {reason}", column.name));
                        "FAIL".to_owned()
                    }
                    Cell::Unsupported(entry) => {
                        let note = format!("unsupported  {} on {}: {}", entry.tests, column.name, entry.why);
                        if !notes.contains(&note) {
                            notes.push(note);
                        }
                        "–".to_owned()
                    }
                };
                write!(f, "  {text:>0$}", width(column))?;
            }
            writeln!(f)?;
        }
        notes.iter().try_for_each(|note| writeln!(f, "{note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let heading = |name: &str| Heading { name: name.to_owned(), traits: vec![name.to_owned()] };
        Table::new(vec!["oom::a".into(), "dns::b".into()], vec![heading("5.10"), heading("6.1")])
    }

    #[test]
    fn a_missing_verdict_is_a_failure_and_is_named() {
        let mut table = table();
        table.pass("5.10", "oom::a", Duration::from_millis(1234));
        table.pass("6.1", "oom::a", Duration::from_secs(2));
        assert_eq!(table.fail("5.10", "dns::b", "it failed"), Cell::FirstTry("it failed".into()));
        assert_eq!(table.counts(), (2, 2, 0));
        let text = table.to_string();
        assert!(text.contains("oom::a    1.2 s    2.0 s"), "{text}");
        assert!(text.contains("FAIL         dns::b on 5.10: it failed"), "{text}");
        assert!(text.contains("FAIL         dns::b on 6.1: no verdict"), "{text}");
        assert_eq!(table.fail("5.10", "dns::b", "again"), Cell::Fail("again".into()));
        table.pass("5.10", "dns::b", Duration::from_secs(3));
        let text = table.to_string();
        assert!(
            text.contains("(3.0 s)") && text.contains("second try   dns::b on 5.10: it failed once"),
            "{text}"
        );
    }
}
