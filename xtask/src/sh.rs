//! Runs commands: prints each with the time since the start, and names the command when it fails.
//!
//! Progress goes to stderr. No child gets our stdin, so that nothing can stop to ask a question.

use std::ffi::OsStr;
use std::fmt::{self, Display};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The workspace's top directory.
///
/// Cargo sets CARGO_MANIFEST_DIR for `cargo run`, so a clone that was moved is found. The compiled-in path serves the
/// binary that is started without cargo.
pub fn root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    xtask.parent().map_or(xtask.clone(), Path::to_path_buf)
}

/// Prints a line of progress, with the seconds since the start.
pub fn progress(what: impl Display) {
    static START: OnceLock<Instant> = OnceLock::new();
    eprintln!("[{:6.1} s] {what}", START.get_or_init(Instant::now).elapsed().as_secs_f64());
}

/// The cargo that runs xtask, in the workspace's root.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// git, in the workspace's root.
pub fn git() -> Command {
    let mut command = Command::new("git");
    command.current_dir(root());
    command
}

/// Runs the command with its output on the terminal.
pub fn run(command: &mut Command) -> Result<()> {
    progress(format_args!("$ {}", show(command)));
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{status}: {}", show(command));
    }
    Ok(())
}

/// Runs the command quietly and returns its stdout; its stderr is in the error if it fails.
pub fn capture(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !out.status.success() {
        bail!("{}: {}\n{}", out.status, show(command), String::from_utf8_lossy(&out.stderr).trim_end());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The command as a user could type it.
pub fn show(command: &Command) -> String {
    std::iter::once(command.get_program()).chain(command.get_args()).map(quote).collect::<Vec<_>>().join(" ")
}

fn quote(argument: &OsStr) -> String {
    let argument = argument.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=./:+,@%".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        return argument.into_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// The program's full path, if it is on PATH.
pub fn which(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// A command that needs root was called without it. Exit code 2.
#[derive(Debug)]
pub struct NeedsRoot {
    what: String,
    remedy: String,
}

impl Display for NeedsRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} needs root; run\n  {}", self.what, self.remedy)
    }
}

impl std::error::Error for NeedsRoot {}

/// Fails unless the caller is root, with the command that works. `why` ends the sentence "`cargo xtask X` …".
pub fn need_root(arguments: &str, why: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    // PATH and HOME are kept: sudo's own would not find cargo, nor rustup its toolchains.
    let remedy = format!(r#"sudo env "PATH=$PATH" "HOME=$HOME" cargo xtask {arguments}"#);
    Err(NeedsRoot {
        what: format!("`cargo xtask {arguments}` {why} and"),
        remedy: remedy.trim_end().to_owned(),
    }
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_shown_as_a_user_could_type_it() {
        let mut command = Command::new("cargo");
        command.args(["run", "--", "it's", "", "-C=x"]);
        assert_eq!(show(&command), r"cargo run -- 'it'\''s' '' -C=x");
    }

    #[test]
    fn a_failing_command_is_named_with_its_stderr() {
        let e = capture(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err().to_string();
        assert!(e.contains("exit status: 3") && e.contains("broken"), "{e}");
    }

    #[test]
    fn the_root_holds_the_workspace() {
        assert!(root().join("Cargo.toml").is_file() && root().join("xtask").is_dir());
    }
}
