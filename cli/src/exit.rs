//! Exit codes and one-line errors. No other module decides an exit code.
//!
//! | code | when |
//! |---|---|
//! | 0 | done; also when the reader of a pipe has closed it |
//! | 1 | nothing was found, or something failed |
//! | 2 | usage, or a missing privilege |

use std::fmt;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use crate::log;
use crate::terminal::{note, visible};

/// The result of a command that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    Success,
    /// The command worked and found nothing.
    NothingFound,
    /// A part of what was asked for could not be had; it is named on stderr.
    Incomplete,
}

/// Wrong usage or a missing privilege: exit 2.
#[derive(Debug)]
pub struct Refusal(pub String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// clap has already printed its message (`--help`, `--version`, a usage error); the exit code is left to set.
#[derive(Debug)]
pub struct AlreadyPrinted(pub u8);

impl fmt::Display for AlreadyPrinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit {}", self.0)
    }
}

impl std::error::Error for AlreadyPrinted {}

/// Runs the program and prints an error in one line.
pub fn code(run: impl FnOnce() -> anyhow::Result<CommandOutcome>) -> ExitCode {
    let result = catch_unwind(AssertUnwindSafe(run));
    if !matches!(result, Ok(Err(_))) {
        log::release_held("");
    }
    match result {
        Ok(Ok(CommandOutcome::Success)) => ExitCode::SUCCESS,
        Ok(Ok(CommandOutcome::NothingFound | CommandOutcome::Incomplete)) => ExitCode::from(1),
        Ok(Err(error)) => {
            let (code, quiet) = judge(&error);
            if !quiet {
                note(&format!("podopsy: {}", line(&error)));
            }
            ExitCode::from(code)
        }
        // The panic hook has printed it.
        Err(_) => ExitCode::from(1),
    }
}

/// Prints a panic in one line, without a backtrace: an operator cannot use one.
pub fn panics_in_one_line() {
    std::panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(|at| format!(" at {}:{}", at.file(), at.line()));
        let why = panic.payload_as_str().unwrap_or("no reason given");
        note(&format!(
            "podopsy: this is a bug in podopsy, please report it: {}{}",
            visible(why).replace('\n', " "),
            location.unwrap_or_default()
        ));
    }));
}

/// The exit code, and whether nothing more is to be printed.
fn judge(error: &anyhow::Error) -> (u8, bool) {
    if let Some(printed) = error.downcast_ref::<AlreadyPrinted>() {
        return (printed.0, true);
    }
    let io =
        |kind| error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == kind));
    if io(ErrorKind::BrokenPipe) {
        // `podopsy watch | head -1`: the reader has enough.
        (0, true)
    } else if error.is::<Refusal>() || io(ErrorKind::PermissionDenied) {
        (2, false)
    } else {
        (1, false)
    }
}

/// The chain of causes in one line, without the backtrace that anyhow's `{:?}` would print.
fn line(error: &anyhow::Error) -> String {
    visible(&format!("{error:#}").split('\n').map(str::trim).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_closed_pipe_is_not_a_failure_at_any_depth_of_the_chain() {
        let error = anyhow::Error::from(io::Error::from(ErrorKind::BrokenPipe)).context("print");
        assert_eq!(judge(&error), (0, true));
    }

    #[test]
    fn missing_privileges_and_usage_errors_exit_2_and_other_errors_1() {
        let refused = Err::<(), _>(Refusal("needs root".into())).context("watch").unwrap_err();
        assert_eq!(judge(&refused), (2, false));
        let denied = anyhow::Error::from(io::Error::from(ErrorKind::PermissionDenied));
        assert_eq!(judge(&denied), (2, false));
        assert_eq!(judge(&anyhow::anyhow!("no such pod")), (1, false));
    }

    #[test]
    fn errors_take_one_line_without_control_sequences() {
        let error = anyhow::anyhow!("inner\nsecond \x1b[2J").context("outer");
        assert_eq!(line(&error), "outer: inner; second \\x1b[2J");
    }
}
