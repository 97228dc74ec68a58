//! `podopsy bridge`: copies between stdin and stdout and the agent's socket, for `kubectl exec`. It listens nowhere and adds
//! nothing: HTTP passes through as it is.

use anyhow::{Context as _, bail};
use tokio::io::{AsyncWriteExt as _, copy};
use tokio::net::UnixStream;

use crate::args::HistoryArgs;
use crate::exit::CommandOutcome;
use crate::history;

pub async fn run(args: &HistoryArgs) -> anyhow::Result<CommandOutcome> {
    let mut socket = connect(args).await?;
    let (mut from_agent, mut to_agent) = socket.split();
    let (mut stdin, mut stdout) = (tokio::io::stdin(), tokio::io::stdout());
    let requests = async {
        copy(&mut stdin, &mut to_agent).await?;
        // The agent still answers the last request.
        to_agent.shutdown().await?;
        std::future::pending().await
    };
    // The agent closes the connection at the end.
    let responses = async {
        let copied = copy(&mut from_agent, &mut stdout).await;
        stdout.flush().await?;
        copied
    };
    let copied: std::io::Result<u64> = tokio::select! {
        copied = responses => copied,
        copied = requests => copied,
    };
    copied.context("the connection to the agent's socket")?;
    Ok(CommandOutcome::Success)
}

async fn connect(args: &HistoryArgs) -> anyhow::Result<UnixStream> {
    let mut reasons = Vec::new();
    for path in history::sockets(args).0 {
        match UnixStream::connect(&path).await {
            Ok(stream) => return Ok(stream),
            Err(error) => reasons.push(format!("{}: {error}", path.display())),
        }
    }
    bail!("no agent answers at {}", reasons.join(", "))
}
