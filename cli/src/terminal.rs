//! Terminals: their width and colours, and the characters that may be sent to one.

use std::io::{IsTerminal, Write};
use std::sync::OnceLock;

use console::Term;
pub use podopsy_model::text::visible;

use crate::log;

/// `--color`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ColourChoice {
    Auto,
    Always,
    Never,
}

/// Set once, before anything is printed.
static CHOICE: OnceLock<ColourChoice> = OnceLock::new();

impl ColourChoice {
    /// Makes it the choice of every terminal of this process.
    pub fn set(self) {
        CHOICE.get_or_init(|| self);
    }

    fn get() -> ColourChoice {
        CHOICE.get().copied().unwrap_or(ColourChoice::Auto)
    }
}

/// The properties of an output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Columns; None: not a terminal, so lines are not cut.
    pub width: Option<usize>,
    pub colour: bool,
}

impl Terminal {
    /// A file or a pipe.
    pub const PLAIN: Terminal = Terminal { width: None, colour: false };

    pub fn stdout() -> Self {
        Self::of(std::io::stdout().is_terminal(), &Term::stdout())
    }

    pub fn stderr() -> Self {
        Self::of(std::io::stderr().is_terminal(), &Term::stderr())
    }

    fn of(is_terminal: bool, term: &Term) -> Self {
        let width = is_terminal.then(|| term.size_checked().map_or(80, |(_, columns)| columns.into()));
        let colour = match ColourChoice::get() {
            ColourChoice::Auto => is_terminal && colour_wanted(),
            ColourChoice::Always => true,
            ColourChoice::Never => false,
        };
        Terminal { width, colour }
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

/// No colour if `NO_COLOR` is set and not empty (<https://no-color.org>).
fn colour_wanted() -> bool {
    let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Prints a line on stderr, after the warnings that [`log`] holds. Ignores errors, where `eprintln!` would panic.
pub fn note(line: &str) {
    log::release_held(line);
    write_line(line);
}

/// Writes a line to stderr. An error is ignored: there is no other place to report it.
pub fn write_line(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_get_no_colour() {
        assert_eq!(Terminal::PLAIN.paint(Colour::Red, "x"), "x");
        assert_eq!(Terminal { width: Some(80), colour: true }.paint(Colour::Red, "x"), "\x1b[31mx\x1b[0m");
    }
}
