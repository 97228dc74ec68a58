//! Log lines on stderr, without timestamps or module paths: `podopsy: warning: …`.
//!
//! Warnings are held until the command prints its first note or its error: if that line has the same cause as a warning,
//! the warning is left out, so that a user reads it only once. Later warnings are printed at once, and so is every line
//! with `-v`.

use std::fmt::{self, Write as _};
use std::sync::{Mutex, MutexGuard};

use podopsy_system::sync::lock;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::terminal::{Colour, Terminal, visible, write_line};

/// `-v` logs what podopsy does, `-vv` in detail, `-vvv` its libraries too.
///
/// `is_quiet`: without `-v` not even warnings, for a command whose report has all that they would.
pub fn to_stderr(verbose: u8, is_quiet: bool) {
    let filter = match verbose {
        0 if is_quiet => "off",
        0 => "warn",
        1 => "warn,podopsy=info,podopsy_agent=info",
        2 => "info,podopsy=debug,podopsy_agent=debug",
        _ => "debug,podopsy=trace,podopsy_agent=trace",
    };
    if verbose == 0 {
        *held() = Some(Vec::new());
    }
    // The level of the probes' log is set in the kernel (PODOPSY_PROBE_LOG), so all of its lines are wanted.
    let filter = EnvFilter::new(format!("{filter},podopsy_probe=trace"));
    tracing_subscriber::registry().with(filter).with(StderrLayer { terminal: Terminal::stderr() }).init();
}

/// Prints the held warnings, except those whose cause is in `next_line`, and holds none from now on.
pub fn release_held(next_line: &str) {
    for line in held().take().into_iter().flatten() {
        if !line.is_repeated_by(next_line) {
            write_line(&line.text);
        }
    }
}

/// None: lines are printed at once.
static HELD: Mutex<Option<Vec<LogLine>>> = Mutex::new(None);

fn held() -> MutexGuard<'static, Option<Vec<LogLine>>> {
    lock(&HELD)
}

struct StderrLayer {
    terminal: Terminal,
}

impl<S: Subscriber> Layer<S> for StderrLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let line = fields.line(*event.metadata().level(), self.terminal);
        match held().as_mut() {
            Some(lines) => lines.push(line),
            None => write_line(&line.text),
        }
    }
}

/// One line of the log.
#[derive(Debug)]
struct LogLine {
    text: String,
    /// The field `error` of the event.
    cause: Option<String>,
}

impl LogLine {
    fn is_repeated_by(&self, line: &str) -> bool {
        self.cause.as_ref().is_some_and(|cause| line.contains(cause.as_str()))
    }
}

/// The fields of a log event.
#[derive(Debug, Default)]
struct Fields {
    message: String,
    error: Option<String>,
    /// ` key=value` for each other field.
    others: String,
}

impl Fields {
    /// `podopsy: warning: MESSAGE: ERROR key=value`.
    fn line(self, level: Level, terminal: Terminal) -> LogLine {
        let (label, colour) = match level {
            Level::ERROR => ("error", Colour::Red),
            Level::WARN => ("warning", Colour::Yellow),
            Level::INFO => ("info", Colour::Green),
            Level::DEBUG => ("debug", Colour::Dim),
            Level::TRACE => ("trace", Colour::Dim),
        };
        let cause = self.error.map(|error| visible(&error));
        let error = cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
        let (message, others) = (visible(&self.message), visible(&self.others));
        let text = format!("podopsy: {}: {message}{error}{others}", terminal.paint(colour, label));
        LogLine { text, cause }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.message = value,
            "error" => self.error = Some(value),
            // Source locations of the `log` crate's records.
            name if name.starts_with("log.") => {}
            name => {
                let _ = write!(self.others, " {name}={value}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warning() -> LogLine {
        let fields = Fields {
            message: "found no container runtime".into(),
            error: Some("no socket\u{1b}[2J".into()),
            others: " pid=7".into(),
        };
        fields.line(Level::WARN, Terminal::PLAIN)
    }

    #[test]
    fn a_warning_is_one_line_without_time_and_module() {
        assert_eq!(warning().text, "podopsy: warning: found no container runtime: no socket\\x1b[2J pid=7");
    }

    #[test]
    fn a_warning_is_repeated_by_a_line_with_its_cause() {
        assert!(warning().is_repeated_by("podopsy: no pod a/b: no socket\\x1b[2J"));
        assert!(!warning().is_repeated_by("podopsy: no pod a/b"));
        assert!(!LogLine { cause: None, ..warning() }.is_repeated_by(""));
    }
}
