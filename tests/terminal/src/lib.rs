//! A program on a terminal of its own, whose screen can be read.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};

const PATIENCE: Duration = Duration::from_secs(20);
/// What a program wrote last has arrived by then.
const SETTLE: Duration = Duration::from_millis(300);

/// Ends the program when it is dropped.
pub struct TerminalProcess {
    pub child: Child,
    terminal: File,
    chunks: Receiver<Vec<u8>>,
    parser: vt100::Parser,
}

impl TerminalProcess {
    pub fn start(mut command: Command, (rows, columns): (u16, u16)) -> anyhow::Result<TerminalProcess> {
        let parser = vt100::Parser::new(rows.try_into()?, columns.try_into()?, 0);
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).context("open a terminal")?;
        let program_end = File::from(pty.slave);
        command.stdin(program_end.try_clone()?).stdout(program_end.try_clone()?).stderr(program_end);
        command.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        let child = command.spawn().with_context(|| format!("run {:?}", command.get_program()))?;
        // The terminal ends with the program's copies of its end.
        drop(command);
        let terminal = File::from(pty.master);
        let mut reader = terminal.try_clone()?;
        let (sender, chunks) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(read) = reader.read(&mut buffer) {
                if read == 0 || sender.send(buffer[..read].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(TerminalProcess { child, terminal, chunks, parser })
    }

    pub fn press(&mut self, keys: &str) -> anyhow::Result<()> {
        self.terminal.write_all(keys.as_bytes()).context("write to the terminal")
    }

    /// The screen as soon as it has the text.
    pub fn wait_for(&mut self, text: &str) -> anyhow::Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let screen = self.parser.screen().contents();
            if screen.contains(text) {
                return Ok(screen);
            }
            if !self.read(end.saturating_duration_since(Instant::now())) {
                bail!("the screen never had {text:?}:\n{screen}");
            }
        }
    }

    /// Takes what the program writes in this time.
    pub fn watch_for(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while self.read(end.saturating_duration_since(Instant::now())) {}
    }

    /// False: nothing was written.
    fn read(&mut self, wait: Duration) -> bool {
        let chunk = self.chunks.recv_timeout(wait);
        chunk.is_ok_and(|chunk| {
            self.parser.process(&chunk);
            true
        })
    }

    /// Waits for the end: how it ended, and what stays on the screen. An error: the terminal is not as it was.
    pub fn end(&mut self) -> anyhow::Result<(ExitStatus, String)> {
        let end = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            self.watch_for(Duration::from_millis(20));
            ensure!(Instant::now() < end, "the program does not end:\n{}", self.parser.screen().contents());
        };
        self.watch_for(SETTLE);
        let screen = self.parser.screen();
        ensure!(!screen.alternate_screen() && !screen.hide_cursor(), "the screen was not restored");
        if let Ok(modes) = tcgetattr(&self.terminal) {
            let cooked = LocalFlags::ECHO | LocalFlags::ICANON;
            ensure!(modes.local_flags.contains(cooked), "the terminal is still raw");
        }
        Ok((status, screen.contents()))
    }

    /// The lines of the screen with their colours as SGR sequences (ECMA-48 §8.3.117), without empty ones at the end.
    pub fn styled_lines(&self) -> Vec<String> {
        let screen = self.parser.screen();
        let (rows, columns) = screen.size();
        let line = |row| styled_line(screen, row, columns.get());
        let mut lines: Vec<String> = (0..rows.get()).map(line).collect();
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines
    }
}

impl Drop for TerminalProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn styled_line(screen: &vt100::Screen, row: u16, columns: u16) -> String {
    let (mut line, mut last) = (String::new(), String::new());
    for cell in (0..columns).filter_map(|column| screen.cell(row, column)) {
        let style = style(cell);
        if style != last {
            line.push_str(&format!("\x1b[0{style}m"));
            last = style;
        }
        line.push_str(if cell.has_contents() { cell.contents() } else { " " });
    }
    if last.is_empty() { line.trim_end().to_owned() } else { line + "\x1b[0m" }
}

/// The parameters after the reset.
fn style(cell: &vt100::Cell) -> String {
    let mut style = String::new();
    for (is_set, parameter) in [(cell.bold(), ";1"), (cell.dim(), ";2"), (cell.inverse(), ";7")] {
        style.push_str(if is_set { parameter } else { "" });
    }
    if let vt100::Color::Idx(colour) = cell.fgcolor() {
        style.push_str(&format!(";38;5;{colour}"));
    }
    if let vt100::Color::Idx(colour) = cell.bgcolor() {
        style.push_str(&format!(";48;5;{colour}"));
    }
    style
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_is_read_with_its_colours_and_keys_are_sent() {
        let mut command = Command::new("sh");
        command.args(["-c", "printf 'a \\033[31mred\\033[0m\\n'; read line; echo \"got $line\""]);
        let mut program = TerminalProcess::start(command, (5, 30)).unwrap();
        program.wait_for("red").unwrap();
        program.press("keys\n").unwrap();
        let (status, screen) = program.end().unwrap();
        assert!(status.success() && screen.contains("got keys"), "{screen}");
        assert_eq!(program.styled_lines()[0], "a \x1b[0;38;5;1mred\x1b[0m");
    }

    #[test]
    fn a_terminal_that_is_left_on_the_other_screen_is_an_error() {
        let mut command = Command::new("printf");
        command.arg("\\033[?1049h");
        let error = TerminalProcess::start(command, (5, 30)).unwrap().end().unwrap_err();
        assert!(error.to_string().contains("not restored"), "{error}");
    }
}
