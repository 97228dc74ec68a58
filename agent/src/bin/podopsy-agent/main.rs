//! `podopsy-agent`: the recorder as a service. Events go to stdout, one JSON object per line.
#![forbid(unsafe_code)]

mod args;
mod reload;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use args::{AgentArgs, GrowthSetting, LogFormat, SelfRestraint};
use podopsy_agent::budget;
use podopsy_agent::config::{self, Setting};
use podopsy_agent::restraint::{self, Begun, Needs, WrittenFolders};
use podopsy_agent::service::{Exports, OutputOptions, Outputs, SystemdNotifier, socket_path};
use podopsy_model::{Event, Losses};
use podopsy_pods::{Pods, PodsOptions};
use podopsy_recorder::options::{dns_ports, https_resolvers};
use podopsy_recorder::sigkill::SigkillScope;
use podopsy_recorder::{DnsHook, DnsOptions, Recorder, RecorderOptions};
use podopsy_stacks::{Helpers, ParserOptions};
use podopsy_system::{descriptors, heap, node};
use reload::reload;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// The interval of the main loop's periodic work. Liveness checks expect it to go on.
const TICK: Duration = Duration::from_secs(1);
/// The time to write pending events at the end. A DaemonSet's pod has 15 s.
const STOP_TIMEOUT: Duration = Duration::from_secs(12);
/// The part of [`STOP_TIMEOUT`] that is reserved for logging the result.
const RESERVED_FOR_RESULT: Duration = Duration::from_secs(1);
/// The bound on threads for blocking work (tokio's own is 512). Each ends after 10 idle seconds.
///
/// An export whose resolver does not respond must not delay anything else. glibc's resolver retries for up to 210 s (three
/// servers, six search domains), while a destination retries after 10 s and a delay that doubles. That is up to eight
/// threads for each of six destinations. The API uses four; scans, state and formats use a handful.
const MAX_BLOCKING_THREADS: usize = 64;

fn main() -> ExitCode {
    if let Some(code) = podopsy_stacks::run_if_asked().or_else(podopsy_pods::run_if_asked) {
        return code;
    }
    heap::keep_small();
    let argv: Vec<OsString> = std::env::args_os().collect();
    let config::LoadedConfig { mut args, settings } = match config::load::<AgentArgs>(&argv) {
        Ok(loaded) => loaded,
        Err(config::ConfigError::Usage(error)) => error.exit(),
        Err(config::ConfigError::File(error)) => {
            eprintln!("podopsy-agent: {error}");
            return ExitCode::from(2);
        }
    };
    args.check(&settings);
    if args.print_config {
        print!("{}", config::print(&settings));
        return ExitCode::SUCCESS;
    }
    start_log(args.log_format);
    if let Some(descriptors) = descriptors::raise() {
        tracing::warn!(
            descriptors,
            "cannot raise the low limit of open files: on a full node, stacks of processes that have ended stay without \
             names; set a higher limit (LimitNOFILE=8192, or the runtime's limit)"
        );
    }
    // Before the agent gives up the right to start programs with rights to set up their jails.
    let helpers = match Helpers::start(ParserOptions::agent(args.state_dir.clone())) {
        Ok(helpers) => helpers,
        Err(error) => {
            eprintln!(
                "podopsy-agent: start the processes that open and parse the files of containers: {error}"
            );
            return ExitCode::FAILURE;
        }
    };
    let mut pods_options = PodsOptions { cri_socket: args.cri_socket.clone(), ..PodsOptions::default() };
    if let Err(error) = pods_options.start_reader() {
        eprintln!("podopsy-agent: start the process that asks the container runtime: {error}");
        return ExitCode::FAILURE;
    }
    // Before the runtime starts its threads, because they inherit the restrictions.
    let begun_restraint =
        (args.self_restraint == SelfRestraint::On).then(|| restraint::begin(&written_folders(&args)));
    let startup = Startup { args, settings, argv, helpers, pods_options, begun_restraint };
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("podopsy-agent: start threads: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run(startup));
    // Not dropped: a drop would wait for threads that still resolve the address of an export.
    runtime.shutdown_background();
    code
}

fn start_log(format: LogFormat) {
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    // The level of the probes' log is set in the kernel (PODOPSY_PROBE_LOG), so everything that arrives is wanted.
    let log = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(tracing_subscriber::EnvFilter::new(format!("{filter},podopsy_probe=trace")));
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().max_blocking_threads(MAX_BLOCKING_THREADS).build()
}

/// What `main` has prepared for the agent.
struct Startup {
    args: AgentArgs,
    settings: Vec<Setting>,
    argv: Vec<OsString>,
    helpers: Helpers,
    pods_options: PodsOptions,
    /// The result of [`restraint::begin`]. None: the agent must not restrain itself.
    begun_restraint: Option<Begun>,
}

async fn run(startup: Startup) -> ExitCode {
    let args = &startup.args;
    let exports = match Exports::start(&args.exports, &node::name(args.node.as_deref())) {
        Ok(exports) => exports,
        Err(error) => {
            eprintln!("podopsy-agent: {error:#}");
            return ExitCode::from(2);
        }
    };
    let result = async {
        let mut agent = Agent::start(startup, exports).await?;
        agent.record_until_signal().await?;
        agent.stop().await
    };
    match result.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes in one line. A backtrace does not help a reader of the pod's log.
            eprintln!("podopsy-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The running agent.
struct Agent {
    recorder: Recorder,
    events: mpsc::Receiver<Event>,
    outputs: Outputs,
    signals: Signals,
    systemd: SystemdNotifier,
    budgets: watch::Sender<budget::BudgetLimits>,
    settings: Vec<Setting>,
    argv: Vec<OsString>,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

impl Agent {
    /// Opens the outputs, attaches the probes, drops what recording does not need, and reports that the agent is ready.
    async fn start(startup: Startup, exports: Exports) -> anyhow::Result<Agent> {
        let Startup { args, settings, argv, helpers, pods_options, begun_restraint } = startup;
        let (budgets, budget_changes) = watch::channel(args.budgets());
        let pods = Pods::start(pods_options).await?;
        let recorder_options = recorder_options(&args, &helpers)?;
        let output_options = output_options(&args, &recorder_options.node, &helpers);
        let mut outputs = Outputs::start(output_options, args.store_limits(), exports, pods.clone()).await?;
        // Before anything shows that the agent runs, because then it may already be sent a signal.
        let signals = Signals::new()?;
        let (recorder, events) = Recorder::start(recorder_options, pods.clone()).await?;
        let status = pods.status();
        outputs.attached(&recorder);
        // Frees the kernel's types (BTF), which are only needed to load the probes.
        heap::give_back();
        let mut systemd = SystemdNotifier::connect();
        if let Some(begun) = begun_restraint {
            finish_restraint(&args, begun, &mut outputs);
        }
        tokio::spawn(budget::enforce(budget_changes, recorder.shed()));
        systemd.ready();
        tracing::info!(
            runtime = status.runtime.as_deref().unwrap_or("none"),
            containers = status.containers_known,
            "recording"
        );
        Ok(Agent { recorder, events, outputs, signals, systemd, budgets, settings, argv })
    }

    /// The main loop. Returns on SIGTERM and SIGINT.
    async fn record_until_signal(&mut self) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.outputs.record(event)?,
                    None => anyhow::bail!("the recorder ended unexpectedly; the log above has the reason"),
                },
                stored = self.outputs.next_stored() => self.outputs.report(stored)?,
                _ = ticks.tick() => {
                    self.outputs.tick();
                    self.systemd.tick();
                }
                _ = self.signals.hangup.recv() => {
                    self.systemd.reloading();
                    reload(&mut self.settings, &self.argv, &self.outputs, &self.budgets);
                    self.systemd.reloaded();
                }
                _ = self.signals.terminate.recv() => return Ok(()),
                _ = self.signals.interrupt.recv() => return Ok(()),
            }
        }
    }

    /// Stops the recorder, and writes and sends pending events within [`STOP_TIMEOUT`].
    async fn stop(self) -> anyhow::Result<()> {
        let Agent { recorder, mut events, mut outputs, systemd, .. } = self;
        systemd.stopping();
        outputs.begin_stopping();
        let own_kills = recorder.own_kills();
        let deadline = Instant::now() + STOP_TIMEOUT - RESERVED_FOR_RESULT;
        let stop = async {
            let losses: Losses = recorder.stop().await?;
            while let Some(event) = events.recv().await {
                outputs.record(event)?;
            }
            outputs.close(deadline).await?;
            anyhow::Ok(losses)
        };
        let mut losses = tokio::time::timeout(STOP_TIMEOUT, stop).await.unwrap_or_else(|_| {
            anyhow::bail!("could not write all pending events within {STOP_TIMEOUT:?}")
        })?;
        losses.extend(outputs.losses());
        // SIGKILLs within one cgroup are counted and not reported.
        tracing::info!(?losses, own_kills, "stopped");
        Ok(())
    }
}

fn recorder_options(args: &AgentArgs, helpers: &Helpers) -> anyhow::Result<RecorderOptions> {
    Ok(RecorderOptions {
        oom: true,
        sigkill: if args.sigkill_host { SigkillScope::AllProcesses } else { SigkillScope::Containers },
        dns: Some(DnsOptions {
            answers: args.dns_answers,
            aaaa_nodata: args.dns_aaaa_nodata,
            lookups: true,
            timeout: args.dns_timeout,
            slow_over: args.dns_slow_over,
            sample: args.dns_sample,
            ports: dns_ports(&args.dns_ports)?,
            https: https_resolvers(&args.doh_resolvers)?,
            hook: DnsHook::Cgroup,
        }),
        node: node::name(args.node.as_deref()),
        state_dir: args.state_dir.clone(),
        growth: args.growth.into(),
        helpers: helpers.clone(),
    })
}

fn output_options(args: &AgentArgs, node: &str, helpers: &Helpers) -> OutputOptions {
    OutputOptions {
        state_dir: args.state_dir.clone(),
        socket: args.socket.clone(),
        listen: args.listen,
        metrics_token_file: args.metrics_token_file.clone(),
        keep_every: args.keep_every,
        profile_hz: args.profile_hz,
        node: node.to_owned(),
        helpers: helpers.clone(),
    }
}

/// The folders that the agent writes to once it has restrained itself.
fn written_folders(args: &AgentArgs) -> WrittenFolders {
    let socket = socket_path(args.socket.as_deref(), args.state_dir.as_deref());
    let folder = socket.parent().filter(|folder| args.state_dir.as_deref() != Some(folder));
    // Of a relative path without a folder, the parent is an empty path.
    WrittenFolders { state: args.state_dir.clone(), socket: folder.map(|folder| Path::new(".").join(folder)) }
}

/// Drops the capabilities and system calls that recording does not need: now, or when the always-on profile's probes are
/// loaded.
fn finish_restraint(args: &AgentArgs, begun: Begun, outputs: &mut Outputs) {
    let samples = matches!(args.growth, GrowthSetting::Auto) || args.profile_hz > 0;
    let health = outputs.health();
    health.set_unrestrained(true);
    let restrain = move || {
        restraint::finish(&Needs { samples }).log(&begun);
        health.set_unrestrained(false);
    };
    match outputs.probes_loaded() {
        Some(loaded) => drop(tokio::spawn(async move {
            let _ = loaded.await;
            restrain();
        })),
        None => restrain(),
    }
}
