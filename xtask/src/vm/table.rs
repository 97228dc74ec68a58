//! Test × kernel: which tests passed, which failed, and which a kernel does not support.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use super::unsupported::{self, UnsupportedTest};

/// The outcome of one test on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    Pass(Duration),
    /// It failed, and is run once more at the end. Without a second verdict it is a failure.
    FirstTry(String),
    /// It failed, and passed when it was run once more.
    SecondTry(Duration),
    Fail(String),
    /// It failed as the list of unsupported tests expects, or was not run.
    Unsupported(&'static UnsupportedTest),
}

/// The table, filled as verdicts come in.
#[derive(Debug, Default)]
pub struct Table {
    tests: Vec<String>,
    columns: Vec<Heading>,
    cells: BTreeMap<(String, String), Cell>,
    /// Wall times of the columns.
    times: BTreeMap<String, Duration>,
}

/// A column's heading.
#[derive(Clone, Debug)]
pub struct Heading {
    pub name: String,
    /// What the list of unsupported tests refers to: the kernel's name, `cgroup v1`.
    pub traits: Vec<String>,
    /// Parts of the names of the tests that the column has. Empty: it has every test.
    pub filter: Vec<String>,
}

impl Heading {
    /// Whether the column has the test, `suite::name`.
    pub fn has(&self, test: &str) -> bool {
        self.filter.is_empty() || self.filter.iter().any(|part| test.contains(part.as_str()))
    }
}

impl Table {
    pub fn new(tests: Vec<String>, columns: Vec<Heading>) -> Table {
        Table { tests, columns, ..Table::default() }
    }

    pub fn pass(&mut self, column: &str, test: &str, took: Duration) -> Cell {
        let cell = match self.unsupported(column, test) {
            // An entry whose reason is gone has to go.
            Some(entry) => Cell::Fail(format!("passes, although listed as unsupported: {}", entry.why)),
            None if self.was_tried(column, test) => Cell::SecondTry(took),
            None => Cell::Pass(took),
        };
        self.put(column, test, cell)
    }

    pub fn fail(&mut self, column: &str, test: &str, reason: &str) -> Cell {
        let cell = match self.unsupported(column, test) {
            Some(entry) => Cell::Unsupported(entry),
            None if self.was_tried(column, test) => Cell::Fail(reason.to_owned()),
            None => Cell::FirstTry(reason.to_owned()),
        };
        self.put(column, test, cell)
    }

    /// Whether the test has no final verdict: none at all, or that of a first try.
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

    fn unsupported(&self, column: &str, test: &str) -> Option<&'static UnsupportedTest> {
        let traits = &self.columns.iter().find(|heading| heading.name == column)?.traits;
        unsupported::find(test, traits)
    }

    /// The cell of a test that the column has. A missing verdict is a failure, unless the test was left out.
    fn cell(&self, column: &Heading, test: &str) -> Cell {
        if let Some(cell) = self.cells.get(&(test.to_owned(), column.name.clone())) {
            return cell.clone();
        }
        match unsupported::find(test, &column.traits) {
            Some(entry) if entry.is_left_out() => Cell::Unsupported(entry),
            _ => Cell::Fail("no verdict".to_owned()),
        }
    }

    /// Prints the table, and a closing line like libtest's.
    pub fn print(&self) {
        let Counts { passed, failed, unsupported } = self.counts(|_| true);
        let verdict = if failed == 0 { "ok" } else { "FAILED" };
        println!("\n{self}");
        println!("test result: {verdict}. {passed} passed; {failed} failed; {unsupported} ignored");
    }

    /// The counts over the columns whose heading `is_counted`.
    pub fn counts(&self, is_counted: impl Fn(&Heading) -> bool) -> Counts {
        let mut counts = Counts::default();
        for (column, test) in self.pairs().filter(|(column, _)| is_counted(column)) {
            match self.cell(column, test) {
                Cell::Pass(_) | Cell::SecondTry(_) => counts.passed += 1,
                Cell::Fail(_) | Cell::FirstTry(_) => counts.failed += 1,
                Cell::Unsupported(_) => counts.unsupported += 1,
            }
        }
        counts
    }

    /// Every column with each of its tests.
    fn pairs(&self) -> impl Iterator<Item = (&Heading, &String)> {
        let tests = |column| self.tests.iter().map(move |test| (column, test));
        self.columns.iter().flat_map(tests).filter(|(column, test)| column.has(test))
    }

    /// The slowest passed tests, slowest first: how long each took, its name, and its column.
    pub fn slowest(&self, count: usize) -> Vec<(Duration, &str, &str)> {
        let took = |(column, test): (&'_ Heading, &'_ String)| match self.cell(column, test) {
            Cell::Pass(took) | Cell::SecondTry(took) => Some(took),
            _ => None,
        };
        let mut all: Vec<_> = self
            .pairs()
            .filter_map(|(column, test)| Some((took((column, test))?, test.as_str(), column.name.as_str())))
            .collect();
        all.sort_by_key(|(took, ..)| std::cmp::Reverse(*took));
        all.truncate(count);
        all
    }

    /// Adds to the wall time of a column.
    pub fn add_time(&mut self, column: &str, took: Duration) {
        *self.times.entry(column.to_owned()).or_default() += took;
    }

    /// The longest wall time of the columns whose heading `is_counted`.
    pub fn time(&self, is_counted: impl Fn(&Heading) -> bool) -> Duration {
        let columns = self.columns.iter().filter(|column| is_counted(column));
        columns.filter_map(|column| self.times.get(&column.name)).max().copied().unwrap_or_default()
    }

    /// The text of a cell, and the note below the table that explains it.
    fn render(&self, column: &Heading, test: &str) -> (String, Option<String>) {
        if !column.has(test) {
            return (String::new(), None);
        }
        let on = &column.name;
        match self.cell(column, test) {
            Cell::Pass(took) => (format!("{:.1} s", took.as_secs_f64()), None),
            Cell::SecondTry(took) => (
                format!("({:.1} s)", took.as_secs_f64()),
                Some(format!("second try   {test} on {on}: it failed once")),
            ),
            Cell::Fail(reason) | Cell::FirstTry(reason) => {
                ("FAIL".to_owned(), Some(format!("FAIL         {test} on {on}: {reason}")))
            }
            Cell::Unsupported(entry) => {
                ("–".to_owned(), Some(format!("unsupported  {} on {on}: {}", entry.tests, entry.why)))
            }
        }
    }
}

/// The sums of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub unsupported: usize,
}

impl Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} unsupported", self.passed, self.failed, self.unsupported)
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
                let (text, note) = self.render(column, test);
                notes.extend(note.filter(|note| !notes.contains(note)));
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
        let heading =
            |name: &str| Heading { name: name.to_owned(), traits: vec![name.to_owned()], filter: Vec::new() };
        Table::new(vec!["oom::a".into(), "dns::b".into()], vec![heading("5.10"), heading("6.1")])
    }

    #[test]
    fn a_missing_verdict_is_a_failure_and_is_named() {
        let mut table = table();
        table.pass("5.10", "oom::a", Duration::from_millis(1234));
        table.pass("6.1", "oom::a", Duration::from_secs(2));
        assert_eq!(table.fail("5.10", "dns::b", "it failed"), Cell::FirstTry("it failed".into()));
        assert_eq!(table.counts(|_| true), Counts { passed: 2, failed: 2, unsupported: 0 });
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

    #[test]
    fn a_column_without_a_test_leaves_its_cell_empty_and_counts_no_failure() {
        let mut table = table();
        table.columns[0].filter = vec!["oom::".to_owned()];
        table.pass("5.10", "oom::a", Duration::from_secs(1));
        assert_eq!(table.counts(|column| column.name == "5.10"), Counts { passed: 1, ..Counts::default() });
        let text = table.to_string();
        assert!(!text.contains("dns::b on 5.10") && text.contains("dns::b on 6.1: no verdict"), "{text}");
    }

    #[test]
    fn the_slowest_tests_come_first_and_a_columns_time_is_the_sum_of_its_parts() {
        let mut table = table();
        table.pass("5.10", "oom::a", Duration::from_secs(3));
        table.pass("6.1", "oom::a", Duration::from_secs(9));
        table.pass("6.1", "dns::b", Duration::from_secs(4));
        let expected = [(Duration::from_secs(9), "oom::a", "6.1"), (Duration::from_secs(4), "dns::b", "6.1")];
        assert_eq!(table.slowest(2), expected);
        table.add_time("6.1", Duration::from_secs(10));
        table.add_time("6.1", Duration::from_secs(5));
        table.add_time("5.10", Duration::from_secs(12));
        assert_eq!(table.time(|_| true), Duration::from_secs(15));
        assert_eq!(table.time(|column| column.name == "5.10"), Duration::from_secs(12));
    }
}
