//! `podopsy dns`: lookups as applications made them, until Ctrl-C or `--for`, with figures at the end.

use std::io;
use std::time::{Duration, Instant};

use podopsy_doctor as doctor;
use podopsy_model::{ContainerRef, Detail, DnsCounts, Event, KnownBy, Losses, Owner, PodRef, Target, text};
use podopsy_pods::{Pods, Resolved};
use podopsy_recorder::dns::lookups::summary::{LookupStatistics, LookupSummary};
use podopsy_recorder::options::{dns_ports, https_resolvers};
use podopsy_recorder::sigkill;
use podopsy_recorder::{DnsOptions, GrowthMode, Recorder, RecorderOptions};
use serde::Serialize;

use super::watch::{ended, reader_is_gone};
use crate::args::{Dns, Hook, ListFormat};
use crate::context::Context;
use crate::exit::Verdict;
use crate::render::dns::{Lines, Shown};
use crate::render::{self, losses, units};
use crate::terminal::note;
use crate::{privilege, signals};

/// How long the end waits for lookups whose pods are being asked for.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The last line of `-o json`.
#[derive(Debug, Serialize)]
struct Last<'a> {
    kind: &'static str,
    seconds: f64,
    #[serde(flatten)]
    summary: &'a LookupSummary,
    /// What the kernel side counted, whether it was told or not.
    counts: &'a [DnsCounts],
    losses: &'a Losses,
    /// How it was seen, in words; null: by the node's root cgroup.
    seen: Option<&'a str>,
}

pub async fn run(context: &Context, args: Dns) -> anyhow::Result<Verdict> {
    privilege::require_dns("dns", args.dns_hook)?;
    let pods = context.pods().await?;
    let scope = Scope::of(&pods, &args).await.map_err(|error| match doctor::dns_out_of_reach() {
        Some(_) if args.dns_hook != Hook::Cgroup => error.context(
            "pods cannot be looked up from here, and by a packet socket there is one pod to see: leave TARGET out",
        ),
        _ => error,
    })?;
    let options = RecorderOptions {
        oom: false,
        dns: Some(DnsOptions {
            answers: true,
            lookups: true,
            timeout: args.dns_timeout,
            slow_over: None,
            sample: 0,
            ports: dns_ports(&args.dns_ports)?,
            https: https_resolvers(&args.doh_resolvers)?,
            hook: args.dns_hook.into(),
        }),
        sigkill: sigkill::SigkillScope::None,
        growth: GrowthMode::Off,
        node: context.node(),
        state_dir: None,
    };
    let (recorder, mut events) = Recorder::start(options, pods).await?;
    let stop = ended(signals::stop()?, args.for_);
    let whose = args
        .target
        .as_ref()
        .map_or_else(String::new, |target| format!(" of {}", text::escape(&target.to_string())));
    let shown = args.shown();
    let seen_from = recorder.dns_hook().map(str::to_owned);
    if let Some(seen) = &seen_from {
        note(&format!("DNS is seen {seen}"));
    }
    note(&format!(
        "recording DNS lookups{whose}; each is told {} after its end or later, when no more of it can come; Ctrl-C ends",
        units::duration(args.dns_timeout + Duration::from_secs(1))
    ));
    let mut seen = Seen {
        scope,
        seen_from,
        args: &args,
        shown,
        lines: Lines::new(args.output, context.stdout, args.queries),
        tally: LookupStatistics::default(),
        lookups: 0,
        failed: 0,
        since: Instant::now(),
    };

    let mut stop = std::pin::pin!(stop);
    let mut reader_check = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => seen.see(&event)?,
                None => anyhow::bail!("the recorder ended by itself; podopsy -v dns may say why"),
            },
            () = &mut stop => break,
            _ = reader_check.tick() => if reader_is_gone() { return Ok(Verdict::Fine) },
        }
    }
    let elapsed = seen.since.elapsed();
    let mut counts = recorder.dns_counts().await;
    counts.retain(|of| seen.has_counts(&of.owner));
    // The channel is emptied while the recorder ends: it holds back the lookups under way until there is room.
    let mut ending = std::pin::pin!(recorder.stop());
    let mut lost = None;
    let end = tokio::time::Instant::now() + LAST_WORDS;
    loop {
        tokio::select! {
            stopped = &mut ending, if lost.is_none() => lost = Some(stopped?),
            event = tokio::time::timeout_at(end, events.recv()) => match event {
                Ok(Some(event)) => seen.see(&event)?,
                Ok(None) => break,
                Err(_) => {
                    note("some lookups were still waiting for the container runtime, and are not shown");
                    break;
                }
            },
        }
    }
    let lost = match lost {
        Some(lost) => lost,
        None => ending.await?,
    };
    seen.finish(context, elapsed, &counts, &lost)?;
    Ok(Verdict::Fine)
}

/// What was seen so far.
struct Seen<'a> {
    scope: Scope,
    /// How, in words, where that is not by the node's root cgroup.
    seen_from: Option<String>,
    args: &'a Dns,
    shown: Shown,
    lines: Lines,
    tally: LookupStatistics,
    lookups: u64,
    failed: u64,
    since: Instant,
}

impl Seen<'_> {
    fn see(&mut self, event: &Event) -> io::Result<()> {
        if !self.scope.has(event) || !self.is_of(event.pod.as_ref()) {
            return Ok(());
        }
        match &event.detail {
            Detail::Dns(transaction) => self.tally.add_query(transaction),
            Detail::Lookup(lookup) => {
                self.tally.add_lookup(&render::event::pod(event), lookup);
                self.lookups += 1;
                self.failed += u64::from(lookup.result.is_failure());
                if self.shown.shows(lookup) {
                    self.lines.print(&mut io::stdout().lock(), event, lookup)?;
                }
            }
            Detail::Oom(_) | Detail::Sigkill(_) => {}
        }
        Ok(())
    }

    /// The namespace and the labels that were asked for.
    fn is_of(&self, pod: Option<&PodRef>) -> bool {
        let Dns { namespace, selector, .. } = self.args;
        let of_it = |pod: &PodRef| {
            namespace.as_ref().is_none_or(|name| *name == pod.namespace)
                && selector.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
        };
        (namespace.is_none() && selector.is_none()) || pod.is_some_and(of_it)
    }

    fn has_counts(&self, owner: &Owner) -> bool {
        self.scope.has_owner(owner) && self.is_of(owner.pod.as_ref())
    }

    fn finish(
        &self,
        context: &Context,
        elapsed: Duration,
        counts: &[DnsCounts],
        lost: &Losses,
    ) -> anyhow::Result<()> {
        let summary = self.tally.summary(self.args.top);
        let mut out = io::stdout().lock();
        if self.args.output == ListFormat::Json {
            let seconds = elapsed.as_secs_f64();
            let seen = self.seen_from.as_deref();
            let last = Last { kind: "dns.summary", seconds, summary: &summary, counts, losses: lost, seen };
            serde_json::to_writer(&mut out, &last)?;
            io::Write::write_all(&mut out, b"\n")?;
        } else {
            render::dns::summary(&mut out, context.stdout, &summary)?;
            render::dns::unseen(&mut out, counts)?;
        }
        drop(out);
        note(&format!(
            "{}, {} failed, in {}; {}",
            units::plural(self.lookups, "lookup"),
            self.failed,
            units::duration(Duration::from_secs(elapsed.as_secs())),
            losses(lost)
        ));
        Ok(())
    }
}

/// Whose lookups.
enum Scope {
    All,
    /// A pod by its uid, and of it a container by its name: restarts are the same one.
    Pod {
        uid: String,
        container: Option<String>,
    },
    Cgroups(Vec<u64>),
    Process(u32),
}

impl Scope {
    async fn of(pods: &std::sync::Arc<Pods>, args: &Dns) -> anyhow::Result<Scope> {
        let Some(target) = &args.target else { return Ok(Scope::All) };
        if let Target::Pid(pid) = *target {
            pods.owner_of_pid(pid).await?;
            return Ok(Scope::Process(pid));
        }
        Ok(match pods.resolve(target).await? {
            Resolved::Node => Scope::All,
            Resolved::Process(pid) => Scope::Process(pid),
            Resolved::Cgroups(ids) => Scope::Cgroups(ids),
            Resolved::Containers(pod, containers) => {
                let one = match (target, &containers[..]) {
                    (Target::Pod { container: None, .. }, _) => None,
                    (Target::Name(word), [_]) if *word == pod.name => None,
                    (_, [one]) => Some(one.container.name.clone()),
                    _ => None,
                };
                Scope::Pod { uid: pod.uid, container: one }
            }
        })
    }

    fn has(&self, event: &Event) -> bool {
        let (pod, container) = (event.pod.as_ref(), event.container.as_ref());
        match self {
            Scope::Process(pid) => event.process.pid == *pid,
            _ => self.has_container(pod, container, event.known_by, event.cgroup.id),
        }
    }

    /// Of a single process nothing is counted in the kernel.
    fn has_owner(&self, owner: &Owner) -> bool {
        let (pod, container) = (owner.pod.as_ref(), owner.container.as_ref());
        self.has_container(pod, container, owner.known_by, owner.cgroup.id)
    }

    fn has_container(
        &self,
        pod: Option<&PodRef>,
        container: Option<&ContainerRef>,
        known_by: KnownBy,
        cgroup: u64,
    ) -> bool {
        match self {
            Scope::All => true,
            Scope::Process(_) => false,
            Scope::Cgroups(ids) => known_by != KnownBy::Unknown && ids.contains(&cgroup),
            Scope::Pod { uid, container: name } => {
                pod.is_some_and(|pod| pod.uid == *uid)
                    && name.as_ref().is_none_or(|name| container.is_some_and(|one| one.name == *name))
            }
        }
    }
}
