//! `podopsy-agent`: the recorder as a service; events go to stdout, one JSON object a line.
#![forbid(unsafe_code)]

mod args;
mod reload;

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use args::{Args, Growth, LogFormat, SelfRestraint};
use podopsy_agent::budget;
use podopsy_agent::config::{self, Setting};
use podopsy_agent::restraint::{self, Needs};
use podopsy_agent::service::{Exports, Out, Paths, Systemd};
use podopsy_pods::{self as pods, Pods};
use podopsy_recorder::options::{dns_ports, https_resolvers};
use podopsy_recorder::sigkill::SigkillScope;
use podopsy_recorder::{DnsHook, DnsOptions, Recorder, RecorderOptions};
use podopsy_system::{descriptors, heap};
use reload::reload;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

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
    args.check(&settings);
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
    let exports = match Exports::start(&args.exports, &podopsy_system::node::name(args.node.as_deref())) {
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
    let (budgets, kept) = watch::channel(args.budgets());
    let limits = args.store_limits();
    let pods = Pods::start(pods::Options { cri_socket: args.cri_socket, ..Default::default() }).await?;
    let options = RecorderOptions {
        oom: true,
        sigkill: if args.sigkill_host { SigkillScope::AllProcesses } else { SigkillScope::Containers },
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
        node: podopsy_system::node::name(args.node.as_deref()),
        state_dir: args.state_dir.clone(),
        growth: args.growth.into(),
    };
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
