//! The doctor's report, by group.

use std::io::{self, Write};

use podopsy_doctor::{Check, CheckGroup, CheckStatus, Report};

use super::table::{NARROW, cut, pad, prose, wrap};
use super::units::plural;
use crate::terminal::{Colour, Terminal, visible};

pub fn print(out: &mut impl Write, terminal: Terminal, report: &Report) -> io::Result<()> {
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut group = None;
    for check in &report.checks {
        if group != Some(check.group) {
            let before = if group.is_some() { "\n" } else { "" };
            writeln!(out, "{before}{}", terminal.paint(Colour::Bold, title(check.group)))?;
            group = Some(check.group);
        }
        line(out, terminal, check, width)?;
    }
    writeln!(out)?;
    prose(out, terminal, &verdict(report))
}

/// Prints what is not ok, and the verdict.
pub fn print_problems(out: &mut impl Write, terminal: Terminal, report: &Report) -> io::Result<()> {
    let problems = || report.checks.iter().filter(|check| check.status != CheckStatus::Ok);
    let width = problems().map(|check| check.name.len()).max().unwrap_or(0);
    for check in problems() {
        line(out, terminal, check, width)?;
    }
    writeln!(out, "  {}\n", verdict(report))
}

fn line(out: &mut impl Write, terminal: Terminal, check: &Check, width: usize) -> io::Result<()> {
    let (label, colour) = match check.status {
        CheckStatus::Ok => ("ok", Colour::Green),
        CheckStatus::Degraded => ("degraded", Colour::Yellow),
        CheckStatus::Missing => ("missing", Colour::Red),
    };
    let status = terminal.paint(colour, &pad(label, 8));
    if let Some(width) = terminal.width.filter(|&width| width < NARROW) {
        return narrow_line(out, width, &status, check);
    }
    // Only findings that are ok are cut on a narrow terminal; the others, and remedies, are needed in full.
    let width_left = match check.status {
        CheckStatus::Ok => terminal.width.map(|columns| columns.saturating_sub(width + 14).max(20)),
        _ => None,
    };
    writeln!(
        out,
        "  {status}  {}  {}",
        pad(&visible(&check.name), width),
        cut(&visible(&check.found), width_left)
    )?;
    if let Some(remedy) = &check.remedy {
        writeln!(out, "  {}  fix: {}", " ".repeat(8), visible(remedy))?;
    }
    Ok(())
}

/// The finding and the remedy below the name, where a line has no space for them.
fn narrow_line(out: &mut impl Write, width: usize, status: &str, check: &Check) -> io::Result<()> {
    writeln!(out, "  {status}  {}", visible(&check.name))?;
    let remedy = check.remedy.as_ref().map(|remedy| format!("fix: {remedy}"));
    for text in [Some(&check.found), remedy.as_ref()].into_iter().flatten() {
        let lines = wrap(&visible(text), Some(width.saturating_sub(2)));
        lines.lines().try_for_each(|line| writeln!(out, "  {line}"))?;
    }
    Ok(())
}

fn title(group: CheckGroup) -> &'static str {
    match group {
        CheckGroup::Kernel => "Kernel",
        CheckGroup::Capability => "Capabilities",
        CheckGroup::Mount => "Mounts and namespaces",
        CheckGroup::Probe => "Probes",
        CheckGroup::Runtime => "Container runtime",
    }
}

fn verdict(report: &Report) -> String {
    match (report.count(CheckStatus::Missing), report.count(CheckStatus::Degraded)) {
        (0, 0) => "Everything that podopsy can use is available.".to_owned(),
        (0, degraded) => {
            format!(
                "Everything that podopsy needs is available; {} degraded.",
                plural(degraded as u64, "check")
            )
        }
        (missing, degraded) => {
            format!("{} missing, {degraded} degraded.", plural(missing as u64, "check"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, group: CheckGroup, status: CheckStatus, found: &str, remedy: Option<&str>) -> Check {
        Check { name: name.into(), group, status, found: found.into(), remedy: remedy.map(str::to_owned) }
    }

    #[test]
    fn on_a_narrow_terminal_nothing_of_a_finding_is_cut() {
        let found = "CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN are effective";
        let checks =
            vec![check("capabilities", CheckGroup::Capability, CheckStatus::Ok, found, Some("none"))];
        let report = Report { checks };
        let mut out = Vec::new();
        print(&mut out, Terminal { width: Some(30), colour: false }, &report).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
Capabilities
  ok        capabilities
    CAP_BPF, CAP_PERFMON and
    CAP_NET_ADMIN are
    effective
    fix: none

Everything that podopsy can
use is available.
"
        );
    }

    #[test]
    fn the_report_has_groups_statuses_and_remedies() {
        let report = Report {
            checks: vec![
                check("btf", CheckGroup::Kernel, CheckStatus::Ok, "/sys/kernel/btf/vmlinux", None),
                check("tracefs", CheckGroup::Mount, CheckStatus::Missing, "not mounted", Some("mount it")),
                check(
                    "cri",
                    CheckGroup::Runtime,
                    CheckStatus::Degraded,
                    "no\x1b socket",
                    Some("--cri-socket PATH"),
                ),
            ],
        };
        let mut out = Vec::new();
        print(&mut out, Terminal::PLAIN, &report).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
Kernel
  ok        btf      /sys/kernel/btf/vmlinux

Mounts and namespaces
  missing   tracefs  not mounted
            fix: mount it

Container runtime
  degraded  cri      no\\x1b socket
            fix: --cri-socket PATH

1 check missing, 1 degraded.
"
        );
    }
}
