//! Exit codes, decided here and nowhere else, and errors in one line.
//!
//! | code | when |
//! |---|---|
//! | 0 | done; also when the reader of a pipe has gone |
//! | 1 | nothing was found, or something failed |
//! | 2 | usage, or a missing privilege |

use std::fmt;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use crate::terminal::{note, visible};

/// How a command that did not fail ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fine,
    /// It worked, and what was asked for is not there.
    Nothing,
}

/// The command cannot be carried out as given, or not by this user: exit 2.
#[derive(Debug)]
pub struct Refused(pub String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// clap has already said what there was to say (`--help`, `--version`, a usage error).
#[derive(Debug)]
pub struct Said(pub u8);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exit {}", self.0)
    }
}

impl std::error::Error for Said {}

/// Runs the program; says an error in one line.
pub fn code(run: impl FnOnce() -> anyhow::Result<Verdict>) -> ExitCode {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(Verdict::Fine)) => ExitCode::SUCCESS,
        Ok(Ok(Verdict::Nothing)) => ExitCode::from(1),
        Ok(Err(error)) => {
            let (code, quiet) = judge(&error);
            if !quiet {
                note(&format!("podopsy: {}", line(&error)));
            }
            ExitCode::from(code)
        }
        // The hook has said it.
        Err(_) => ExitCode::from(1),
    }
}

/// A bug is said in one line too: a backtrace at 3 a.m. helps nobody but us.
pub fn panics_in_one_line() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|at| format!(" at {}:{}", at.file(), at.line()));
        let why = panic.payload_as_str().unwrap_or("no reason given");
        note(&format!(
            "podopsy: this is a bug in podopsy, please report it: {}{}",
            visible(why).replace('\n', " "),
            place.unwrap_or_default()
        ));
    }));
}

/// (exit code, nothing more to say).
fn judge(error: &anyhow::Error) -> (u8, bool) {
    if let Some(said) = error.downcast_ref::<Said>() {
        return (said.0, true);
    }
    let io =
        |kind| error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == kind));
    if io(ErrorKind::BrokenPipe) {
        // `podopsy watch | head -1`: the reader has what it wanted.
        (0, true)
    } else if error.is::<Refused>() || io(ErrorKind::PermissionDenied) {
        (2, false)
    } else {
        (1, false)
    }
}

/// The whole chain in one line; never with anyhow's backtrace, which `{:?}` would print.
fn line(error: &anyhow::Error) -> String {
    visible(&format!("{error:#}").split('\n').map(str::trim).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_closed_pipe_is_no_failure_however_deep() {
        let error = anyhow::Error::from(io::Error::from(ErrorKind::BrokenPipe)).context("print");
        assert_eq!(judge(&error), (0, true));
    }

    #[test]
    fn privilege_and_usage_are_2_and_the_rest_is_1() {
        let refused = Err::<(), _>(Refused("needs root".into())).context("watch").unwrap_err();
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
