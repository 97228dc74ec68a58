//! `podopsy profile`: samples a target's stacks, writes them to files, and lists the functions that took the time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use podopsy_model::Target;
use podopsy_model::profile::Sampling;
use podopsy_pods::{Pods, Resolved};
use podopsy_recorder::cpu::{self, ProfileOptions, Scope};

use crate::args::{ProfileArgs, ProfileCommand, Stacks};
use crate::context::Context;
use crate::exit::{CommandOutcome, NotFound, Refusal};
use crate::headroom::{self, Need};
use crate::render::{losses, table::NARROW, top, units};
use crate::selection::Selection;
use crate::terminal::note;
use crate::{output, privilege, signals};

/// The call of progress, at five a second, by which most programs have been met.
const SETTLED_AT: u64 = 10;

pub async fn run(context: &Context, args: ProfileArgs) -> anyhow::Result<CommandOutcome> {
    if let Some(ProfileCommand::Diff(args)) = &args.diff {
        return super::diff::run(context, args);
    }
    if let Some(since) = args.since {
        return super::kept::run(context, &args, since).await;
    }
    let outputs = args.outputs()?;
    privilege::require("profile", privilege::SAMPLE)?;
    headroom::require("profile", Need::Profile, context.global.ignore_memory_limit)?;
    let sampling = args.sampling();
    let selection = Selection::new(&args.targets, &args.pods)?;
    let shown = if args.all { "the whole node".to_owned() } else { selection.describe() };
    let pending = output::prepare(outputs)?;
    let is_to_stdout = pending.has_stdout();
    let pods = context.pods().await?;
    let scope = if args.all { Scope::Node } else { scope(&pods, &selection).await? };
    let unwind = args.stacks == Stacks::Tables;
    let options = ProfileOptions {
        scope,
        duration: args.duration,
        sampling,
        unwind,
        node: context.node(),
        helpers: context.helpers(),
    };

    let stop = signals::stop()?;
    let meter = ProgressMeter::start(context, &shown, args.duration, sampling);
    let mut calls = 0u64;
    let progress = |samples| {
        // What loads the probes is not needed again, and soon neither is what first meets programs and builds their tables.
        if [0, SETTLED_AT].contains(&calls) {
            headroom::settle();
        }
        calls += 1;
        meter.show(samples);
    };
    let result = cpu::profile(options, pods, stop, progress).await;
    meter.end();
    let profile = result?;

    let total = profile.total();
    let summary = format!(
        "{} in {} of {shown}; {}",
        units::plural(total, "sample"),
        units::duration(Duration::from_millis(profile.duration.as_millis() as u64 / 100 * 100)),
        losses(&profile.losses)
    );
    note(&summary);
    if let (user, complete) = profile.complete()
        && user > 0
    {
        note(&format!(
            "user stacks complete: {complete} of {user} ({:.2} %)",
            complete as f64 * 100.0 / user as f64
        ));
    }
    if total == 0 {
        note(match sampling {
            Sampling::Cpu { .. } => "the target used no CPU during the sampling: no file is written",
            Sampling::Growth { .. } => {
                "the target touched too few new pages for a sample: no file is written; try --every 1"
            }
        });
        return Ok(CommandOutcome::NothingFound);
    }
    // Files before the table: they must be written even if the reader of stdout has closed the pipe.
    let written = output::report(pending.finish(&profile));
    let listed = if is_to_stdout {
        Ok(())
    } else {
        top::print(&mut io::stdout().lock(), context.stdout, &profile, args.top, args.top_format())
    };
    written?;
    Ok(listed.map(|()| CommandOutcome::Success)?)
}

/// Resolves the targets to what is sampled: one process, or the cgroups of all of them.
pub async fn scope(pods: &Arc<Pods>, selection: &Selection) -> anyhow::Result<Scope> {
    // A pid selects only that process, also when it is in a container.
    if let [Target::Pid(pid)] = selection.targets[..] {
        pods.owner_of_pid(pid).await?;
        return Ok(Scope::Process(pid));
    }
    let mut ids = Vec::new();
    for resolved in selection.resolve(pods).await? {
        match resolved {
            Resolved::Node => return Ok(Scope::Node),
            Resolved::Process(pid) => {
                let reason = format!("pid:{pid} is in no container: profile it alone");
                return Err(Refusal(reason).into());
            }
            Resolved::Cgroups(of_host) => ids.extend(of_host),
            Resolved::Containers(_, containers) => {
                let running = containers.iter().filter(|container| container.state == "running");
                ids.extend(running.flat_map(|container| container.cgroup_ids.iter().copied()));
            }
        }
    }
    ids.sort_unstable();
    ids.dedup();
    if ids.is_empty() {
        return Err(NotFound(format!("{} has no running container to sample", selection.describe())).into());
    }
    Ok(Scope::Cgroups(ids))
}

/// Progress on stderr: a bar on a terminal, otherwise one line at the start.
struct ProgressMeter {
    bar: Option<ProgressBar>,
    since: Instant,
}

impl ProgressMeter {
    fn start(context: &Context, target: &str, duration: Duration, sampling: Sampling) -> Self {
        let for_how_long = units::duration(duration);
        let since = Instant::now();
        if !context.stderr.is_terminal() {
            note(&format!("profiling {target} for {for_how_long}, samples {sampling}"));
            return ProgressMeter { bar: None, since };
        }
        let length = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
        // On a narrow terminal the bar would not be one line.
        let template = match context.stderr.width {
            Some(width) if width < NARROW => "{elapsed} {wide_msg}",
            _ => "{prefix} [{bar:30}] {elapsed} {msg}",
        };
        // The target is set as the prefix and not put into the template, so that braces in it do no harm.
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(format!("{target}, {for_how_long}"));
        bar.set_message("0 samples; Ctrl-C ends early");
        ProgressMeter { bar: Some(bar), since }
    }

    fn show(&self, samples: u64) {
        if let Some(bar) = &self.bar {
            let elapsed = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
            bar.set_position(elapsed.min(bar.length().unwrap_or(u64::MAX)));
            bar.set_message(format!("{}; Ctrl-C ends early", units::plural(samples, "sample")));
        }
    }

    fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
