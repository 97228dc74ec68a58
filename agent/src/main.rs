//! `podopsy-agent`: the recorder as a service; events go to stdout, one JSON object a line.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use podopsy_agent::attach::{dns_ports, https_resolvers};
use podopsy_agent::duration;
use podopsy_agent::model::Event;
use podopsy_agent::oom::history::History;
use podopsy_agent::pods::{self, Pods};
use podopsy_agent::recorder::{DnsHook, DnsOptions, GrowthMode, Options, Recorder};
use podopsy_agent::sigkill::Scope;
use tokio::signal::unix::{SignalKind, signal};

/// Records OOM kills, other SIGKILLs and failed DNS lookups of every pod on this node, and writes them to stdout as
/// JSON lines.
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
    /// A DNS query without an answer for this long is a timeout
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration::parse_dns_timeout)]
    dns_timeout: Duration,
    /// Write answered DNS queries that took longer than this (200ms), too
    #[arg(long, value_name = "TIME", value_parser = duration::parse_dns_slow)]
    dns_slow_over: Option<Duration>,
    /// Write one answered DNS query in so many, too
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    dns_sample: u32,
    /// A server port that carries DNS, instead of 53; up to four times (mDNS has 5353)
    #[arg(long = "dns-port", value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    dns_ports: Vec<u16>,
    /// A resolver that answers by HTTPS, too: lookups there cannot be seen, and connections to it are counted as such
    #[arg(long = "doh-resolver", value_name = "ADDRESS")]
    doh_resolvers: Vec<IpAddr>,
    /// Write answered DNS queries too, not only failures
    #[arg(long)]
    dns_answers: bool,
    /// Tell SIGKILLs of host processes, too, not only of containers'
    #[arg(long)]
    sigkill_host: bool,
    /// A folder that outlives the agent: OOM kills that happen while it is down are told by the next start, and
    /// `podopsy oom` finds its incidents there (it looks in /var/lib/podopsy)
    #[arg(long, env = "PODOPSY_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Whose page faults to sample, so that the report of an OOM kill tells which code the memory grew by
    ///
    /// While there is no suspect, nothing is sampled, and it costs nothing. While there is one, every page fault of the
    /// node costs some 90 ns more (5 %): 0.45 % of one CPU at 50,000 faults a second. A CPU takes 470 samples a second at
    /// most.
    #[arg(long, env = "PODOPSY_GROWTH", value_enum, value_name = "WHO", default_value_t = Growth::Auto)]
    growth: Growth,
}

/// Whose page faults to sample.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Growth {
    /// Containers that were OOM-killed before, or whose memory grows towards their limit: 16 at most
    Auto,
    /// Nobody's
    Off,
}

impl From<Growth> for GrowthMode {
    fn from(growth: Growth) -> GrowthMode {
        match growth {
            Growth::Auto => GrowthMode::Auto,
            Growth::Off => GrowthMode::Off,
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let wrong = dns_ports(&args.dns_ports).err().or_else(|| https_resolvers(&args.doh_resolvers).err());
    if let Some(error) = wrong {
        Args::command().error(ErrorKind::TooManyValues, error).exit();
    }
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
        sigkill: if args.sigkill_host { Scope::AllProcesses } else { Scope::Containers },
        dns: Some(DnsOptions {
            answers: args.dns_answers,
            lookups: true,
            timeout: args.dns_timeout,
            slow_over: args.dns_slow_over,
            sample: args.dns_sample,
            ports: dns_ports(&args.dns_ports)?,
            https: https_resolvers(&args.doh_resolvers)?,
            hook: DnsHook::Cgroup,
        }),
        node: podopsy_agent::node::name(args.node.as_deref()),
        state_dir: args.state_dir.clone(),
        growth: args.growth.into(),
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
    let own_kills = recorder.own_kills();
    let losses = recorder.stop().await?;
    while let Some(event) = events.recv().await {
        write(&event)?;
        keep(&mut history, &event);
    }
    // SIGKILLs within one cgroup are counted and not told.
    tracing::info!(?losses, own_kills, "stopped");
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
        tracing::warn!("podopsy oom will not know this: {error:#}");
    }
}
