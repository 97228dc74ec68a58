//! `podopsy-agent`: the recorder as a service; events go to stdout, one JSON object a line.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use podopsy_agent::attach::DNS_TIMEOUT;
use podopsy_agent::model::Event;
use podopsy_agent::oom::history::History;
use podopsy_agent::pods::{self, Pods};
use podopsy_agent::recorder::{Options, Recorder};
use tokio::signal::unix::{SignalKind, signal};

/// Records OOM kills and failed DNS lookups of every pod on this node, and writes them to stdout as JSON lines.
///
/// Needs root, the host's pid namespace and its /sys/fs/cgroup (see manifests/). Its own log goes to stderr
/// (RUST_LOG=debug for more; PODOPSY_PROBE_LOG=debug for the kernel probes' own). SIGTERM and SIGINT end it
/// after what is under way has been written.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// The node's name in events; the host's name otherwise
    #[arg(long, env = "NODE_NAME")]
    node: Option<String>,
    /// The container runtime's CRI v1 socket; the usual paths are tried otherwise
    #[arg(long, env = "PODOPSY_CRI_SOCKET", value_name = "PATH")]
    cri_socket: Option<PathBuf>,
    /// A DNS query without an answer for this many seconds is a timeout
    #[arg(long, value_name = "SECONDS", default_value_t = DNS_TIMEOUT.as_secs_f64(), value_parser = seconds)]
    dns_timeout: f64,
    /// Write answered DNS queries too, not only failures
    #[arg(long)]
    dns_answers: bool,
    /// A folder that outlives the agent: OOM kills that happen while it is down are told by the next start, and
    /// `podopsy oom` finds its incidents there (it looks in /var/lib/podopsy)
    #[arg(long, env = "PODOPSY_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    // The probes' own log has its level in the kernel (PODOPSY_PROBE_LOG): what arrives was asked for.
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(tracing_subscriber::EnvFilter::new(format!("{filter},podopsy_probe=trace")))
        .init();
    match run(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain in one line: a backtrace helps nobody who has only the pod's log.
            eprintln!("podopsy-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let pods = Pods::start(pods::Options { cri_socket: args.cri_socket, ..Default::default() }).await?;
    let options = Options {
        oom: true,
        dns: true,
        dns_answers: args.dns_answers,
        dns_lookups: true,
        dns_timeout: Duration::from_secs_f64(args.dns_timeout),
        node: podopsy_agent::node::name(args.node.as_deref()),
        state_dir: args.state_dir.clone(),
    };
    let mut history = args.state_dir.as_deref().map(History::open).transpose()?;
    let (recorder, mut events) = Recorder::start(options, pods.clone()).await?;
    let status = pods.status();
    tracing::info!(
        runtime = status.runtime.as_deref().unwrap_or("none"),
        containers = status.containers_known,
        "recording"
    );

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => {
                    write(&event)?;
                    keep(&mut history, &event);
                }
                None => anyhow::bail!("the recorder ended by itself; the log above says why"),
            },
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    let losses = recorder.stop().await?;
    while let Some(event) = events.recv().await {
        write(&event)?;
        keep(&mut history, &event);
    }
    tracing::info!(?losses, "stopped");
    Ok(())
}

/// One line, flushed: whoever reads has it at once.
fn write(event: &Event) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(event).context("write an event as JSON")?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).context("write an event to stdout")
}

/// A full disk costs the history, not the recording.
fn keep(history: &mut Option<History>, event: &Event) {
    if let Some(Err(error)) = history.as_mut().map(|history| history.add(event)) {
        tracing::warn!("podopsy oom will not know this incident: {error:#}");
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err("give seconds between 0.1 and 3600".to_owned()),
    }
}
