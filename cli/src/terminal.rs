//! Terminals: how wide, whether in colour, and what may be sent to one.

use std::io::{IsTerminal, Write};

use console::Term;
use tracing_subscriber::filter::EnvFilter;

/// What is known of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Columns; None: not a terminal, so that nothing is cut off.
    pub width: Option<usize>,
    pub colour: bool,
}

impl Terminal {
    /// A file or a pipe.
    #[cfg(test)]
    pub const PLAIN: Terminal = Terminal { width: None, colour: false };

    pub fn stdout() -> Self {
        Self::of(std::io::stdout().is_terminal(), &Term::stdout())
    }

    pub fn stderr() -> Self {
        Self::of(std::io::stderr().is_terminal(), &Term::stderr())
    }

    fn of(is_terminal: bool, term: &Term) -> Self {
        let width = is_terminal.then(|| term.size_checked().map_or(80, |(_, columns)| columns.into()));
        Terminal { width, colour: is_terminal && colour_wanted() }
    }

    pub fn is_terminal(self) -> bool {
        self.width.is_some()
    }

    /// `text` in a colour, if this terminal takes colours.
    pub fn paint(self, colour: Colour, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_owned() }
    }
}

/// The number is SGR's (ECMA-48 §8.3.117).
#[derive(Clone, Copy, Debug)]
pub enum Colour {
    Bold = 1,
    Dim = 2,
    Red = 31,
    Green = 32,
    Yellow = 33,
}

/// <https://no-color.org>: set and not empty means no.
fn colour_wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// A line on stderr. What cannot be written there has no other place to go, and `eprintln!` would panic.
pub fn note(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// The last gate before a terminal: controls and characters that reorder or hide text become escapes.
///
/// Untrusted strings have been through `model::text` at their source; this one leaves alone what that
/// has made, and our own arrows and dots.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match u32::from(c) {
            code @ (0..0x20 | 0x7f) => out.push_str(&format!("\\x{code:02x}")),
            // C1 controls, soft hyphen, zero-width and bidirectional marks, BOM, tags.
            0x80..=0x9f
            | 0xad
            | 0x61c
            | 0x200b..=0x200f
            | 0x2028..=0x202e
            | 0x2060..=0x206f
            | 0xfeff
            | 0xe0000..=0xe007f => out.extend(c.escape_unicode()),
            _ => out.push(c),
        }
    }
    out
}

/// `-v` shows what podopsy is doing, `-vv` in detail, `-vvv` its libraries too.
///
/// `quiet`: without `-v` not even warnings, for a command whose answer says all that they would.
pub fn log_to_stderr(verbose: u8, quiet: bool) {
    let filter = match verbose {
        0 if quiet => "off",
        0 => "warn",
        1 => "warn,podopsy=info,podopsy_agent=info",
        2 => "info,podopsy=debug,podopsy_agent=debug",
        _ => "debug,podopsy=trace,podopsy_agent=trace",
    };
    // The probes' own log has its level in the kernel (PODOPSY_PROBE_LOG): what arrives was asked for.
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(format!("{filter},podopsy_probe=trace")))
        .with_writer(std::io::stderr)
        .with_ansi(Terminal::stderr().colour)
        .init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_a_terminal_but_text() {
        assert_eq!(visible("a\x1b[2J\u{9b}\u{202e}b\u{7f}"), "a\\x1b[2J\\u{9b}\\u{202e}b\\x7f");
        assert_eq!(visible("leak[1] → 5.0 µs … \\x1b café"), "leak[1] → 5.0 µs … \\x1b café");
    }

    #[test]
    fn files_get_no_colour() {
        assert_eq!(Terminal::PLAIN.paint(Colour::Red, "x"), "x");
        assert_eq!(Terminal { width: Some(80), colour: true }.paint(Colour::Red, "x"), "\x1b[31mx\x1b[0m");
    }
}
