//! Exit codes and one-line errors. No other module decides an exit code.
//!
//! | code | when |
//! |---|---|
//! | 0 | done; also when the reader of a pipe has closed it |
//! | 1 | nothing was found: the command worked, and its answer is empty |
//! | 2 | wrong usage: also a TARGET that several pods match |
//! | 3 | something failed, or a part of the answer is missing |
//! | 4 | a permission is missing: a capability, root, or RBAC |

use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use podopsy_client::ClientError;
use podopsy_model::TargetMatchError;

use crate::log;
use crate::terminal::{note, visible};

/// The result of a command that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandOutcome {
    Success,
    /// The command worked and found nothing.
    NothingFound,
    /// A part of what was asked for could not be had, or the doctor found something essential missing; it was named.
    Incomplete,
}

/// The exit codes. They are an interface: docs/cli.md documents them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Done = 0,
    NothingFound = 1,
    Usage = 2,
    Failed = 3,
    NotPermitted = 4,
}

/// Wrong usage.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// A permission that is missing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotPermitted(pub String);

/// There is nothing with the name or the id that was asked for.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NotFound(pub String);

/// There is nothing more to print, and the exit code is left to set: clap has printed `--help` or a usage error, or another
/// program ran in place of podopsy.
#[derive(Debug, thiserror::Error)]
#[error("exit {0}")]
pub struct AlreadyPrinted(pub u8);

/// Runs the program and prints an error in one line.
pub fn code(run: impl FnOnce() -> anyhow::Result<CommandOutcome>) -> ExitCode {
    let result = catch_unwind(AssertUnwindSafe(run));
    if !matches!(result, Ok(Err(_))) {
        log::release_held("");
    }
    match result {
        Ok(Ok(CommandOutcome::Success)) => ExitCode::SUCCESS,
        Ok(Ok(CommandOutcome::NothingFound)) => ExitCode::from(Code::NothingFound as u8),
        Ok(Ok(CommandOutcome::Incomplete)) => ExitCode::from(Code::Failed as u8),
        Ok(Err(error)) => {
            let (code, quiet) = judge(&error);
            if !quiet {
                note(&format!("podopsy: {}", line(&error)));
            }
            ExitCode::from(code)
        }
        // The panic hook has printed it.
        Err(_) => ExitCode::from(Code::Failed as u8),
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
        return (Code::Done as u8, true);
    }
    let code = match error.downcast_ref::<TargetMatchError>() {
        Some(TargetMatchError::NotFound(_)) => Code::NothingFound,
        Some(TargetMatchError::Ambiguous(_)) => Code::Usage,
        None if error.is::<NotFound>() => Code::NothingFound,
        None if error.is::<Refusal>() => Code::Usage,
        None if is_not_permitted(error) || io(ErrorKind::PermissionDenied) => Code::NotPermitted,
        None => Code::Failed,
    };
    (code as u8, false)
}

fn is_not_permitted(error: &anyhow::Error) -> bool {
    let is_of_agent = matches!(error.downcast_ref(), Some(ClientError::NotPermitted(_)));
    is_of_agent || error.is::<NotPermitted>()
}

/// The chain of causes in one line, without the backtrace that anyhow's `{:?}` would print.
pub fn line(error: &anyhow::Error) -> String {
    visible(&format!("{error:#}").split('\n').map(str::trim).collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_pipe_is_not_a_failure_at_any_depth_of_the_chain() {
        let error = anyhow::Error::from(io::Error::from(ErrorKind::BrokenPipe)).context("print");
        assert_eq!(judge(&error), (0, true));
    }

    #[test]
    fn each_kind_of_error_has_its_code_also_with_a_context() {
        let text = || "x".to_owned();
        for (error, code) in [
            (anyhow::Error::from(NotFound(text())), 1),
            (TargetMatchError::NotFound(text()).into(), 1),
            (TargetMatchError::Ambiguous(text()).into(), 2),
            (Refusal(text()).into(), 2),
            (anyhow::anyhow!("disk on fire"), 3),
            (NotPermitted(text()).into(), 4),
            (ClientError::NotPermitted(text()).into(), 4),
            (io::Error::from(ErrorKind::PermissionDenied).into(), 4),
        ] {
            let shown = format!("{error:?}");
            assert_eq!(judge(&error), (code, false), "{shown}");
            assert_eq!(judge(&error.context("watch")), (code, false), "{shown}");
        }
    }

    #[test]
    fn errors_take_one_line_without_control_sequences() {
        let error = anyhow::anyhow!("inner\nsecond \x1b[2J").context("outer");
        assert_eq!(line(&error), "outer: inner; second \\x1b[2J");
    }
}
