//! `podopsy mcp`: serves the history to an assistant.

use std::io::IsTerminal as _;

use podopsy_model::text;

use crate::args::McpArgs;
use crate::context::Context;
use crate::evidence::bundle;
use crate::exit::CommandOutcome;
use crate::mcp::{Server, Source};
use crate::signals;
use crate::terminal::note;

pub async fn run(context: &Context, args: McpArgs) -> anyhow::Result<CommandOutcome> {
    let source = match args.from {
        Some(path) => {
            let evidence = bundle::open(&path)?;
            Source::Bundle(text::escape(&path.display().to_string()), Box::new(evidence))
        }
        None => Source::Node(args.history),
    };
    if std::io::stdin().is_terminal() {
        note("this talks to an assistant's client on stdin and stdout: docs/mcp.md has the configuration");
    }
    let server = Server::new(context.clone(), source);
    let stop = signals::stop()?;
    tokio::select! {
        served = server.serve(tokio::io::stdin(), tokio::io::stdout()) => served?,
        () = stop => {}
    }
    Ok(CommandOutcome::Success)
}
