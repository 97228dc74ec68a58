//! Two profiles side by side, the largest change first.

use std::io::{self, Write};

use podopsy_profiles::compare::{BeforeAfter, Comparison, ComparisonBasis, share};

use super::table::{TextTable, prose};
use super::units;
use crate::terminal::Terminal;

/// Prints the totals and the `count` functions (0: all) that changed most. The name is the last column, because some are
/// wider than the screen.
pub fn print(
    out: &mut impl Write,
    terminal: Terminal,
    compared: &Comparison,
    count: usize,
) -> io::Result<()> {
    let BeforeAfter { before, after } = compared.total;
    let value = |value| amount(value, &compared.unit);
    writeln!(out, "{}: {} before, {} after", compared.kind, value(before), value(after))?;
    let mut table = TextTable::new(&[
        "   CHANGE",
        "SELF BEFORE",
        "SELF AFTER",
        "CUM CHANGE",
        "CUM BEFORE",
        "CUM AFTER",
        "FUNCTION",
    ]);
    let count = if count == 0 { usize::MAX } else { count };
    let changed = || {
        let no_change = |pair: BeforeAfter| compared.change(pair).abs() < f64::EPSILON;
        compared
            .functions
            .iter()
            .filter(move |function| !(no_change(function.own) && no_change(function.cumulative)))
    };
    if changed().next().is_none() {
        let same = match compared.by {
            ComparisonBasis::Share => "share of ",
            ComparisonBasis::Value => "",
        };
        let kind = &compared.kind;
        return prose(
            out,
            terminal,
            &format!("no difference: each function has the same {same}{kind} in both"),
        );
    }
    for function in changed().take(count) {
        let (own, sum) = (function.own, function.cumulative);
        table.row(vec![
            change(compared, own),
            side(compared, own.before, before),
            side(compared, own.after, after),
            change(compared, sum),
            side(compared, sum.before, before),
            side(compared, sum.after, after),
            function.function.clone(),
        ]);
    }
    table.print(out, terminal)?;
    let left = changed().count().saturating_sub(count);
    if left > 0 {
        let left = units::plural(left as u64, "function");
        prose(out, terminal, &format!("… and {left} with smaller changes: --top 0 lists all"))?;
    }
    Ok(())
}

/// A value or its share of the total, right-aligned below the column's title.
fn side(compared: &Comparison, part: u64, total: u64) -> String {
    match compared.by {
        ComparisonBasis::Share => format!("{:8.2} %", share(part, total)),
        ComparisonBasis::Value => format!("{:>10}", amount(part, &compared.unit)),
    }
}

fn change(compared: &Comparison, pair: BeforeAfter) -> String {
    match compared.by {
        ComparisonBasis::Share => format!("{:+7.2} %", compared.change(pair)),
        ComparisonBasis::Value => {
            let sign = if pair.after < pair.before { '-' } else { '+' };
            format!("{:>10}", format!("{sign}{}", amount(pair.after.abs_diff(pair.before), &compared.unit)))
        }
    }
}

fn amount(value: u64, unit: &str) -> String {
    match unit {
        "nanoseconds" => units::nanoseconds(value),
        "bytes" => units::bytes(value),
        "count" | "" => value.to_string(),
        other => format!("{value} {other}"),
    }
}

#[cfg(test)]
mod tests {
    use podopsy_profiles::compare::FunctionChange;

    use super::*;

    fn compared(by: ComparisonBasis) -> Comparison {
        let function = |name: &str, own: (u64, u64), sum: (u64, u64)| FunctionChange {
            function: name.to_owned(),
            own: BeforeAfter { before: own.0, after: own.1 },
            cumulative: BeforeAfter { before: sum.0, after: sum.1 },
        };
        Comparison {
            kind: "cpu".into(),
            unit: "nanoseconds".into(),
            by,
            total: BeforeAfter { before: 1_000_000_000, after: 2_000_000_000 },
            functions: vec![
                function("copy", (0, 500_000_000), (0, 500_000_000)),
                function("hash\u{1b}[2J", (600_000_000, 900_000_000), (600_000_000, 900_000_000)),
                function("main", (0, 0), (1_000_000_000, 2_000_000_000)),
            ],
        }
    }

    fn printed(by: ComparisonBasis, count: usize) -> String {
        let mut out = Vec::new();
        print(&mut out, Terminal::PLAIN, &compared(by), count).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn shares_are_listed_with_the_largest_change_first() {
        let expected = "cpu: 1.0 s before, 2.0 s after
   CHANGE  SELF BEFORE  SELF AFTER  CUM CHANGE  CUM BEFORE  CUM AFTER   FUNCTION
 +25.00 %      0.00 %      25.00 %   +25.00 %       0.00 %     25.00 %  copy
 -15.00 %     60.00 %      45.00 %   -15.00 %      60.00 %     45.00 %  hash\\x1b[2J
";
        assert_eq!(printed(ComparisonBasis::Share, 0), expected, "main did not change");
    }

    #[test]
    fn profiles_without_a_difference_are_called_so() {
        let mut same = compared(ComparisonBasis::Share);
        same.functions.retain(|function| function.function == "main");
        let mut out = Vec::new();
        print(&mut out, Terminal::PLAIN, &same, 0).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.ends_with("no difference: each function has the same share of cpu in both\n"), "{text}");
    }

    #[test]
    fn values_are_listed_and_the_rest_is_counted() {
        let text = printed(ComparisonBasis::Value, 1);
        assert!(text.contains(" +500.0 ms") && text.contains("copy"), "{text}");
        assert!(text.ends_with("… and 2 functions with smaller changes: --top 0 lists all\n"), "{text}");
    }
}
