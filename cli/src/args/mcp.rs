//! Arguments of `mcp`.

use std::path::PathBuf;

use clap::Args;

use super::{HistoryArgs, examples};

/// Serve what the agent has recorded to an assistant, by the Model Context Protocol over stdin and stdout
///
/// Read-only: its tools read the history of this node's agent, or a bundle, and start no measurement. An assistant's client
/// starts this command and talks to it; docs/mcp.md has its configuration. Ends when stdin does. Logs go to stderr.
#[derive(Debug, Args)]
#[command(after_help = examples::MCP)]
pub struct McpArgs {
    /// Read a bundle instead of the agent's history
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,

    #[command(flatten)]
    pub history: HistoryArgs,
}
