//! `podopsy-agent`: the recorder as a service; events go to stdout, one JSON object a line.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use podopsy_agent::attach::{dns_ports, https_resolvers};
use podopsy_agent::config::{self, Origin, Setting};
use podopsy_agent::pods::{self, Pods};
use podopsy_agent::recorder::{DnsHook, DnsOptions, GrowthMode, Options, Recorder};
use podopsy_agent::restraint::{self, Needs};
use podopsy_agent::service::{ExportArgs, Exports, Out, Paths, Systemd};
use podopsy_agent::sigkill::Scope;
use podopsy_agent::store::Limits;
use podopsy_agent::{budget, bytes, descriptors, duration, heap};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Records OOM kills, other SIGKILLs and failed DNS lookups of every pod on this node, and writes them to stdout as
/// JSON lines.
///
/// Needs root, the host's pid namespace and its /sys/fs/cgroup (see manifests/). Its own log goes to stderr
/// (RUST_LOG=debug for more; PODOPSY_PROBE_LOG=debug for the kernel probes' own). SIGTERM and SIGINT end it
/// after what is under way has been written; SIGHUP reads the configuration again.
///
/// Each flag is a setting: --dns-timeout 3s is PODOPSY_DNS_TIMEOUT=3s in the environment, and dns-timeout = "3s" in the
/// file. A flag wins over the environment, and the environment over the file.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Settings as TOML; /etc/podopsy/agent.toml is read if it is there
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print every setting, as a file that says the same, with where its value comes from, and end
    #[arg(long)]
    print_config: bool,
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
    /// How much of the disk the history may take; the oldest leaves first (needs --state-dir; SIGHUP changes it)
    #[arg(long, value_name = "BYTES", default_value = "512MiB", value_parser = bytes::parse_store)]
    store_bytes: u64,
    /// How far back the history goes, but for kills, which stay as long as there is room (SIGHUP changes it)
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration::parse)]
    store_age: Duration,
    /// Where the API listens, for root and the agent's own user; agent.sock in the --state-dir, or in /run/podopsy
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Where to answer /metrics, /healthz and /readyz by TCP (127.0.0.1:9464); nowhere unless told to
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Sample every CPU so many times a second, always, and keep a profile a minute of each container in the history; 0
    /// does not. Where there is neither --state-dir, where podopsy profile --since reads them, nor --pyroscope-url nor
    /// --otlp-profiles, nobody takes them, and nothing is sampled
    ///
    /// It is the first that is left out when the agent is over its budgets.
    #[arg(long, value_name = "HZ", default_value_t = 19, value_parser = clap::value_parser!(u64).range(0..=199))]
    profile_hz: u64,
    /// How often what is sampled is put into the store: memory and profiles
    #[arg(long, value_name = "TIME", default_value = "60s", hide = true, value_parser = duration::parse)]
    keep_every: Duration,
    /// Whose page faults to sample, so that the report of an OOM kill tells which code the memory grew by
    ///
    /// While there is no suspect, nothing is sampled, and it costs nothing. While there is one, every page fault of the
    /// node costs some 90 ns more (5 %): 0.45 % of one CPU at 50,000 faults a second. A CPU takes 470 samples a second at
    /// most.
    #[arg(long, env = "PODOPSY_GROWTH", value_enum, value_name = "WHO", default_value_t = Growth::Auto)]
    growth: Growth,
    #[command(flatten)]
    exports: ExportArgs,
    /// How much of one CPU the agent may take, over ten seconds (0.5: half of one; 0: as much as it takes). Over it, and
    /// over the two below, it leaves out profiles, growth samples, then DNS events, step by step, and counts them: never OOM
    /// kills. SIGHUP changes all three
    #[arg(long, value_name = "SHARE", default_value_t = 0.5, value_parser = share)]
    cpu_budget: f64,
    /// How much memory it may hold (0: as much as it takes)
    #[arg(long, value_name = "BYTES", default_value = "200MiB", value_parser = bytes::parse)]
    memory_budget: u64,
    /// How many events of DNS may be due in a second (0: as many as there are)
    #[arg(long, value_name = "N", default_value_t = 1000)]
    events_budget: u64,
    /// Give up what recording does not need, once it records: capabilities, new privileges, and system calls that start
    /// programs, mount, or load BPF programs; the log says what is kept, and why. Off is for debugging
    #[arg(long, value_enum, value_name = "WHETHER", default_value_t = SelfRestraint::On)]
    self_restraint: SelfRestraint,
    /// How the log on stderr is written: as lines of text, or as one JSON object a line, for a collector
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = LogFormat::Text)]
    log_format: LogFormat,
}

/// A share of one CPU.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1024.0).contains(share));
    share.ok_or_else(|| "use a share of one CPU, like 0.5 (0: as much as it takes)".to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// Whether to give up rights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum SelfRestraint {
    On,
    Off,
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

/// Rounds of the pipeline: a sign of life for whoever watches it.
const ROUND: Duration = Duration::from_secs(1);
/// What is under way is written out within this; a DaemonSet's pod has 15 s.
const END_WITHIN: Duration = Duration::from_secs(12);
/// Of that, for saying how it ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    heap::keep_small();
    let argv: Vec<OsString> = std::env::args_os().collect();
    let config::Loaded { mut args, settings } = match config::load::<Args>(&argv) {
        Ok(loaded) => loaded,
        Err(config::Error::Usage(error)) => error.exit(),
        Err(config::Error::File(error)) => {
            eprintln!("podopsy-agent: {error}");
            return ExitCode::from(2);
        }
    };
    let wrong = dns_ports(&args.dns_ports).err().or_else(|| https_resolvers(&args.doh_resolvers).err());
    if let Some(error) = wrong {
        Args::command().error(ErrorKind::TooManyValues, error).exit();
    }
    let (samples, sends) = (args.profile_hz > 0, args.exports.takes_profiles());
    if sends && !samples {
        let error = "pyroscope-url or otlp-profiles is set, and profile-hz is 0: there would be no profiles; set profile-hz to 19, or neither";
        Args::command().error(ErrorKind::ValueValidation, error).exit();
    }
    if samples && !sends && args.state_dir.is_none() {
        // A file may be one that --print-config wrote, and has every setting.
        let is_wish = |one: &Setting| {
            one.name == "profile-hz" && matches!(one.origin, Origin::Flag | Origin::Environment(_))
        };
        if settings.iter().any(is_wish) {
            let error = "profile-hz is set, and nothing takes the profiles: set state-dir, pyroscope-url or otlp-profiles";
            Args::command().error(ErrorKind::ValueValidation, error).exit();
        }
        args.profile_hz = 0;
    }
    if args.print_config {
        print!("{}", config::print(&settings));
        return ExitCode::SUCCESS;
    }
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    // The probes' own log has its level in the kernel (PODOPSY_PROBE_LOG): what arrives was asked for.
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(tracing_subscriber::EnvFilter::new(format!("{filter},podopsy_probe=trace")));
    match args.log_format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    if let Some(descriptors) = descriptors::raise() {
        tracing::warn!(
            descriptors,
            "may open few files, and cannot raise that: on a full node stacks of the dead stay without names; give it \
             more (LimitNOFILE=8192, or the runtime's limit)"
        );
    }
    // Before the runtime's threads, which inherit it.
    let begun = (args.self_restraint == SelfRestraint::On).then(restraint::begin);
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("podopsy-agent: start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(start(args, settings, &argv, begun));
    // Not dropped: that would wait for whoever still asks a resolver that is silent for the address of an export.
    runtime.shutdown_background();
    code
}

/// Threads for what may block, at most, and each ends when it had nothing to do for 10 s; tokio's own bound is 512. Nobody
/// waits behind an export whose resolver is silent: glibc's asks for up to 210 s (three servers, six search domains), and
/// meanwhile a destination tries anew after 10 s and a pause that doubles. That is eight of them for each of six
/// destinations; the API takes four, and scans, state and formats a handful.
const BLOCKING: usize = 64;

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(BLOCKING).build()
}

async fn start(
    args: Args,
    settings: Vec<Setting>,
    argv: &[OsString],
    begun: Option<Vec<String>>,
) -> ExitCode {
    let exports = match Exports::start(&args.exports, &podopsy_agent::node::name(args.node.as_deref())) {
        Ok(exports) => exports,
        Err(error) => {
            eprintln!("podopsy-agent: {error:#}");
            return ExitCode::from(2);
        }
    };
    match run(args, settings, argv, begun, exports).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain in one line: a backtrace helps nobody who has only the pod's log.
            eprintln!("podopsy-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(
    args: Args,
    mut settings: Vec<Setting>,
    argv: &[OsString],
    begun: Option<Vec<String>>,
    exports: Exports,
) -> anyhow::Result<()> {
    let (budgets, kept) = watch::channel(budget(&args));
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
    let limits = Limits { bytes: args.store_bytes, age: args.store_age };
    let (samples, folder) =
        (matches!(args.growth, Growth::Auto) || args.profile_hz > 0, args.state_dir.clone());
    let (keep_every, profile_hz, node) = (args.keep_every, args.profile_hz, options.node.clone());
    let (state_dir, socket, listen) = (args.state_dir, args.socket, args.listen);
    let paths = Paths { state_dir, socket, listen, keep_every, profile_hz, node };
    let mut out = Out::start(paths, limits, exports, pods.clone()).await?;
    // Before anything shows that we run: who sees it may ask us to end, or to read our configuration again.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut hangup = signal(SignalKind::hangup())?;
    let (recorder, mut events) = Recorder::start(options, pods.clone()).await?;
    let status = pods.status();
    out.attached(&recorder);
    // The kernel's types were read for the probes.
    heap::give_back();
    if let Some(begun) = begun {
        let restrain = move || {
            // The folder was made by now, if it was not there.
            let foreign_folder = folder.is_some_and(|folder| !restraint::own_folder(&folder));
            restraint::finish(&Needs { samples, foreign_folder }).log(&begun);
        };
        match out.settling() {
            Some(settled) => drop(tokio::spawn(async move {
                let _ = settled.await;
                restrain();
            })),
            None => restrain(),
        }
    }
    tokio::spawn(budget::keep(kept, recorder.shed()));
    let mut systemd = Systemd::start();
    tracing::info!(
        runtime = status.runtime.as_deref().unwrap_or("none"),
        containers = status.containers_known,
        "recording"
    );

    let mut round = tokio::time::interval(ROUND);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => out.take(event)?,
                None => anyhow::bail!("the recorder ended by itself; the log above says why"),
            },
            stored = out.stored() => out.tell(stored)?,
            _ = round.tick() => {
                out.round();
                systemd.round();
            }
            _ = hangup.recv() => {
                systemd.reloading();
                reload(&mut settings, argv, &out, &budgets);
                systemd.reloaded();
            }
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    systemd.stopping();
    out.stopping();
    let own_kills = recorder.own_kills();
    let deadline = Instant::now() + END_WITHIN - LAST_WORDS;
    let end = async {
        let losses = recorder.stop().await?;
        while let Some(event) = events.recv().await {
            out.take(event)?;
        }
        out.close(deadline).await?;
        anyhow::Ok(losses)
    };
    let mut losses = tokio::time::timeout(END_WITHIN, end)
        .await
        .unwrap_or_else(|_| anyhow::bail!("what was under way could not be written within {END_WITHIN:?}"))?;
    losses.extend(out.losses());
    // SIGKILLs within one cgroup are counted and not told.
    tracing::info!(?losses, own_kills, "stopped");
    Ok(())
}

/// 0 is none.
fn budget(args: &Args) -> budget::Limits {
    budget::Limits {
        cpu: Some(args.cpu_budget).filter(|share| *share > 0.0),
        memory: Some(args.memory_budget).filter(|bytes| *bytes > 0),
        events: Some(args.events_budget).filter(|events| *events > 0),
    }
}

/// Takes over what can be changed while it runs, and says what cannot; a file that is wrong changes nothing.
fn reload(settings: &mut [Setting], argv: &[OsString], out: &Out, budgets: &watch::Sender<budget::Limits>) {
    let loaded = match config::load::<Args>(argv) {
        Ok(loaded) => loaded,
        Err(error) => {
            tracing::warn!("nothing is changed: {}", error.to_string().trim_end());
            return;
        }
    };
    let changed = config::changed(settings, &loaded.settings);
    let (mut taken, mut left) = (Vec::new(), Vec::new());
    for one in changed {
        let names = if RELOADED.contains(&one.name.as_str()) { &mut taken } else { &mut left };
        names.push(one.clone());
    }
    if !taken.is_empty() {
        out.set_limits(Limits { bytes: loaded.args.store_bytes, age: loaded.args.store_age });
        // Whoever keeps to them may be gone; then nothing is left out any more.
        let _ = budgets.send(budget(&loaded.args));
    }
    for one in &taken {
        settings.iter_mut().filter(|old| old.name == one.name).for_each(|old| *old = one.clone());
    }
    let names = |all: &[Setting]| all.iter().map(|one| one.name.clone()).collect::<Vec<_>>().join(", ");
    tracing::info!(
        "read the configuration again; changed: {}",
        if taken.is_empty() { "nothing".to_owned() } else { names(&taken) }
    );
    if !left.is_empty() {
        tracing::warn!("changed in the configuration, and not here: {}: restart the agent", names(&left));
    }
}

/// What SIGHUP can change.
const RELOADED: [&str; 5] = ["store-bytes", "store-age", "cpu-budget", "memory-budget", "events-budget"];
