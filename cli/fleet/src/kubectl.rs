//! Calls of kubectl, the user's own: it has the cluster, the credentials of every kind, and what RBAC says of them.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::process::Stdio;

use podopsy_model::text;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::agents::Agent;

/// The agent's container in its pod.
pub const CONTAINER: &str = "agent";
/// The command line in that container.
pub const PODOPSY: &str = "/podopsy";

/// The longest list that kubectl may print: 5000 pods of 12 KiB.
const LIST_BYTES_MAX: usize = 64 << 20;
/// What is read of stderr, and the longest reason that is shown of it.
const STDERR_BYTES_MAX: usize = 16 << 10;
const REASON_CHARS_MAX: usize = 300;

/// How kubectl is called.
#[derive(Clone, Debug, Default)]
pub struct Kubectl {
    pub context: Option<String>,
    pub kubeconfig: Option<PathBuf>,
}

/// Why kubectl has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KubectlError {
    #[error("cannot start kubectl: {0}; podopsy reaches the agents with it, so it has to be in the PATH")]
    NotStarted(String),
    /// RBAC refused the call.
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Failed(String),
    #[error("cannot read kubectl's output: {0}")]
    Invalid(String),
}

impl Kubectl {
    fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("kubectl");
        if let Some(context) = &self.context {
            command.arg(format!("--context={context}"));
        }
        if let Some(path) = &self.kubeconfig {
            let mut option = OsString::from("--kubeconfig=");
            option.push(path);
            command.arg(option);
        }
        command.args(arguments).kill_on_drop(true);
        command
    }

    /// Gets objects. The output is theirs as JSON.
    pub async fn get<T: DeserializeOwned>(&self, arguments: &[&str]) -> Result<T, KubectlError> {
        let output = self.output([&["get", "--output=json"], arguments].concat()).await?;
        serde_json::from_slice(&output).map_err(|error| KubectlError::Invalid(error.to_string()))
    }

    /// The namespace of the kubeconfig's context, as kubectl takes it when there is no `-n`.
    pub async fn namespace(&self) -> Result<String, KubectlError> {
        let output = self.output(["config", "view", "--minify", "--output=jsonpath={..namespace}"]).await;
        let name = match output {
            Ok(output) => String::from_utf8_lossy(&output).trim().to_owned(),
            // Inside a pod there is no kubeconfig.
            Err(KubectlError::Failed(_)) => String::new(),
            Err(error) => return Err(error),
        };
        Ok(if is_name(&name) { name } else { "default".to_owned() })
    }

    async fn output<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Vec<u8>, KubectlError> {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut call = Call::start(command)?;
        let stdout = call.child.stdout.take();
        let output = read_bounded(stdout, LIST_BYTES_MAX).await.map_err(KubectlError::Invalid)?;
        call.end().await.map(|()| output)
    }

    /// podopsy in an agent's container, with pipes for stdout and stderr. With `has_input` its stdin is a pipe, too.
    pub fn exec_command(&self, agent: &Agent, arguments: &[OsString], has_input: bool) -> Command {
        let container = format!("--container={CONTAINER}");
        let namespace = format!("--namespace={}", agent.namespace);
        let mut fixed = vec!["exec", &agent.pod, &namespace, &container];
        if has_input {
            fixed.push("--stdin");
        }
        fixed.extend(["--", PODOPSY]);
        let mut command = self.command(fixed);
        let stdin = if has_input { Stdio::piped() } else { Stdio::null() };
        command.args(arguments).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A kubectl that runs. Dropping it ends it.
#[derive(Debug)]
pub struct Call {
    pub child: Child,
    stderr: JoinHandle<String>,
}

impl Call {
    pub fn start(mut command: Command) -> Result<Call, KubectlError> {
        let mut child = command.spawn().map_err(|error| KubectlError::NotStarted(error.to_string()))?;
        let stderr = child.stderr.take();
        let stderr = tokio::spawn(async move {
            let text = read_bounded(stderr, STDERR_BYTES_MAX).await;
            String::from_utf8_lossy(&text.unwrap_or_default()).into_owned()
        });
        Ok(Call { child, stderr })
    }

    /// Waits for the end. The error is what kubectl, or the command that it called, wrote to stderr.
    pub async fn end(mut self) -> Result<(), KubectlError> {
        let status = self.child.wait().await.map_err(|error| KubectlError::Failed(error.to_string()))?;
        if status.success() {
            return Ok(());
        }
        let text = self.stderr.await.unwrap_or_default();
        Err(failure(&text, &status.to_string()))
    }
}

/// Reads all there is. An error: there is more than `max`.
pub async fn read_bounded(stream: Option<impl AsyncRead + Unpin>, max: usize) -> Result<Vec<u8>, String> {
    let Some(stream) = stream else { return Ok(Vec::new()) };
    let mut out = Vec::new();
    stream.take(max as u64 + 1).read_to_end(&mut out).await.map_err(|error| error.to_string())?;
    if out.len() > max { Err(format!("it is longer than {max} bytes")) } else { Ok(out) }
}

/// The reason in what kubectl wrote to stderr.
fn failure(stderr: &str, status: &str) -> KubectlError {
    if stderr.contains("unrecognized subcommand 'bridge'") {
        return KubectlError::Failed("its podopsy is an older version without `podopsy bridge`".to_owned());
    }
    let mut lines = stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let is_reason = |line: &&str| !line.starts_with("command terminated with exit code");
    let line = lines.rfind(is_reason).unwrap_or(status);
    let line =
        ["error: ", "podopsy: "].iter().fold(line, |line, start| line.strip_prefix(start).unwrap_or(line));
    let reason: String = text::visible(line).chars().take(REASON_CHARS_MAX).collect();
    let bare = |start| reason.strip_prefix(start).map(str::to_owned);
    if let Some(reason) = bare("Error from server (Forbidden): ") {
        KubectlError::Forbidden(reason)
    } else if let Some(reason) = bare("Error from server (NotFound): ") {
        KubectlError::NotFound(reason)
    } else {
        KubectlError::Failed(reason)
    }
}

/// Whether this can be the name of an object: it cannot be taken for an option.
pub fn is_name(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    (1..=253).contains(&text.len())
        && text.bytes().all(is_inner)
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_line_that_says_something() {
        let forbidden = "Error from server (Forbidden): pods \"a\" is forbidden: User \"u\" cannot create resource \"pods/exec\"\n";
        assert!(
            matches!(failure(forbidden, ""), KubectlError::Forbidden(reason) if reason.starts_with("pods \"a\""))
        );
        let gone = failure("Error from server (NotFound): pods \"a\" not found\n", "");
        assert_eq!(gone, KubectlError::NotFound("pods \"a\" not found".into()));
        let remote = "Defaulted container\npodopsy: no agent\x1b[2J\ncommand terminated with exit code 1\n";
        assert_eq!(failure(remote, ""), KubectlError::Failed("no agent\\x1b[2J".into()));
        let old =
            "error: unrecognized subcommand 'bridge'\n\nUsage: podopsy\ncommand terminated with exit code 2";
        assert!(failure(old, "").to_string().contains("older version"));
        assert_eq!(failure("\n", "exit status: 1").to_string(), "exit status: 1");
    }

    #[test]
    fn a_name_is_no_option() {
        assert!(is_name("podopsy-agent-x1") && is_name("node.example.com"));
        assert!(["", "-n", "--kubeconfig=x", "a b", "A", "a\u{202e}"].iter().all(|text| !is_name(text)));
    }
}
