//! What podopsy's commands print on a terminal, for the pictures in the documentation.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use podopsy_terminal::TerminalProcess;

use crate::outage::Recorded;
use crate::recorder::Recorder;
use crate::report::{self, step};

/// Rows and columns.
const SIZE: (u16, u16) = (60, 126);
const TOP_SIZE: (u16, u16) = (10, 130);
/// Until the memory of the restarted container has a slope.
const TOP_AFTER: Duration = Duration::from_secs(12);

/// Writes a text for each picture.
pub fn write(recorder: &Recorder, recorded: &Recorded, folder: &Path) -> anyhow::Result<()> {
    step("write what the commands print, for the pictures");
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let words = report::story(recorded);
    for (name, words) in ["restarts", "timeline", "autopsy"].iter().zip(&words) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let lines = printed(recorder.podopsy(&words))?;
        write_text(folder, name, &format!("podopsy {}", words.join(" ")), &lines)?;
    }
    let mut top = TerminalProcess::start(recorder.podopsy(&["top", "-n", "finance"]), TOP_SIZE)?;
    top.wait_for("checkout-api")?;
    top.watch_for(TOP_AFTER);
    write_text(folder, "top", "podopsy top -n finance", &top.styled_lines())?;
    top.press("q")?;
    top.end()?;
    let report = folder.join("report.html");
    let status = recorder
        .podopsy(&["report", "finance/checkout-api", "-w"])
        .arg(&report)
        .status()
        .context("run podopsy report")?;
    ensure!(status.success(), "podopsy report ended with {status}");
    Ok(())
}

fn printed(command: Command) -> anyhow::Result<Vec<String>> {
    let mut program = TerminalProcess::start(command, SIZE)?;
    let (status, screen) = program.end()?;
    ensure!(status.success(), "it ended with {status}:\n{screen}");
    Ok(program.styled_lines())
}

fn write_text(folder: &Path, name: &str, command: &str, lines: &[String]) -> anyhow::Result<()> {
    let path = folder.join(name).with_extension("txt");
    fs::write(&path, format!("$ {command}\n{}\n", lines.join("\n")))
        .with_context(|| path.display().to_string())
}
