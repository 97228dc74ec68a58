//! `podopsy watch`: prints events as they happen, until Ctrl-C, `--count` or `--duration`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use podopsy_model::{Detail, Event, EventKind, Losses};
use podopsy_recorder::options::{dns_ports, https_resolvers};
use podopsy_recorder::sigkill::SigkillScope;
use podopsy_recorder::{DnsOptions, GrowthMode, Recorder, RecorderOptions};
use tokio::sync::mpsc;

use crate::args::{WatchArgs, WatchKind};
use crate::context::Context;
use crate::exit::CommandOutcome;
use crate::headroom::{self, Need};
use crate::render::event::EventPrinter;
use crate::render::{losses, units};
use crate::selection::{OwnerScope, Selection};
use crate::terminal::note;
use crate::{privilege, signals};

pub async fn run(context: &Context, args: WatchArgs) -> anyhow::Result<CommandOutcome> {
    let (oom, dns) = (args.wants(WatchKind::Oom), args.wants(WatchKind::Dns));
    match (dns, oom || args.wants(WatchKind::Sigkill)) {
        (true, false) => privilege::require_dns("watch dns", args.dns_hook)?,
        (true, true) => privilege::require("watch", privilege::SAMPLE_PACKETS)?,
        (false, _) => privilege::require("watch", privilege::SAMPLE)?,
    }

    let need = if oom || args.wants(WatchKind::Sigkill) { Need::Probes } else { Need::of_dns(args.dns_hook) };
    headroom::require("watch", need, context.global.ignore_memory_limit)?;
    let pods = context.pods().await?;
    let selection = Selection::new(&args.targets(), &args.pods)?;
    let scopes = OwnerScope::on_node(&selection, &pods).await?;
    let dns = match dns {
        true => Some(DnsOptions {
            answers: args.all,
            aaaa_nodata: args.aaaa_nodata,
            lookups: false,
            timeout: args.dns_timeout,
            slow_over: args.slow_over,
            sample: args.sample,
            ports: dns_ports(&args.dns_ports)?,
            https: https_resolvers(&args.doh_resolvers)?,
            hook: args.dns_hook.into(),
        }),
        false => None,
    };
    let options = RecorderOptions {
        oom,
        sigkill: match (args.wants(WatchKind::Sigkill), args.host) {
            (false, _) => SigkillScope::None,
            (true, false) => SigkillScope::Containers,
            (true, true) => SigkillScope::AllProcesses,
        },
        dns,
        node: context.node(),
        state_dir: None,
        growth: GrowthMode::Auto,
        helpers: context.helpers(),
    };
    let (recorder, mut events) = Recorder::start(options, pods).await?;
    headroom::settle();

    let stop = until_end(signals::stop()?, args.duration);
    if let Some(seen) = recorder.dns_hook() {
        note(&format!("DNS is seen {seen}"));
    }
    note(&format!("recording {}; Ctrl-C ends", subject(&args)));

    let mut watched = WatchSession::new(context, &args, selection, scopes);
    if follow(&mut events, stop, &mut watched).await? == FollowEnd::ReaderGone {
        return Ok(CommandOutcome::Success);
    }
    // Of the kills that were asked for, while the recorder still runs.
    if watched.has_all_events() && !finish(&mut events, &mut watched).await? {
        note("an incident of a kill took too long, and is not shown");
    }
    let own_kills = recorder.own_kills();
    let lost = recorder.stop().await?;
    // Events that were recorded before the end are still printed.
    if !finish(&mut events, &mut watched).await? {
        note("some events were still waiting for the container runtime, and are not shown");
    }
    note(&watched.counts.summary(watched.since.elapsed(), &lost));
    if own_kills > 0 {
        note(&format!(
            "not shown: {} between processes of one container or cgroup",
            units::plural(own_kills, "SIGKILL")
        ));
    }
    let short = args.duration.is_some() && args.count.is_some_and(|count| watched.counts.total() < count);
    Ok(if short && !watched.interrupted(args.duration) {
        CommandOutcome::NothingFound
    } else {
        CommandOutcome::Success
    })
}

/// At the end: how long to wait for events whose pods the runtime is still looking up.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Prints what is still to come, until all that was asked for is printed or the recorder has stopped. False: it took too
/// long.
async fn finish(events: &mut mpsc::Receiver<Event>, watched: &mut WatchSession) -> io::Result<bool> {
    let drain = async {
        while !watched.is_full()
            && let Some(event) = events.recv().await
        {
            watched.handle(&event)?;
        }
        io::Result::Ok(())
    };
    match tokio::time::timeout(DRAIN_TIMEOUT, drain).await {
        Ok(result) => result.map(|()| true),
        Err(_) => Ok(false),
    }
}

/// Why [`follow`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FollowEnd {
    Requested,
    ReaderGone,
}

/// Prints events until a signal, the duration or the count ends it.
async fn follow(
    events: &mut mpsc::Receiver<Event>,
    stop: impl Future<Output = ()>,
    watched: &mut WatchSession,
) -> anyhow::Result<FollowEnd> {
    let mut stop = std::pin::pin!(stop);
    let mut reader_check = tokio::time::interval(Duration::from_millis(500));
    while !watched.has_all_events() {
        tokio::select! {
            event = events.recv() => match event {
                Some(event) => watched.handle(&event)?,
                None => anyhow::bail!("the recorder stopped unexpectedly; run podopsy -v watch for its log"),
            },
            () = &mut stop => break,
            _ = reader_check.tick() => if reader_is_gone() { return Ok(FollowEnd::ReaderGone) },
        }
    }
    Ok(FollowEnd::Requested)
}

/// Resolves at a signal, or when `duration` is over.
pub async fn until_end(stop: impl Future<Output = ()>, duration: Option<Duration>) {
    match duration {
        Some(duration) => tokio::select! {
            () = stop => {}
            () = tokio::time::sleep(duration) => {}
        },
        None => stop.await,
    }
}

/// `podopsy watch | head -1` must end when head does, not at the next event.
pub fn reader_is_gone() -> bool {
    let stdout = io::stdout();
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP | PollFlags::POLLNVAL;
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| events.intersects(gone))
}

/// `OOM kills, SIGKILLs and DNS lookups`.
fn subject(args: &WatchArgs) -> String {
    let all =
        [(WatchKind::Oom, "OOM kills"), (WatchKind::Sigkill, "SIGKILLs"), (WatchKind::Dns, "DNS lookups")];
    let names: Vec<&str> =
        all.into_iter().filter(|(kind, _)| args.wants(*kind)).map(|(_, name)| name).collect();
    match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} and {last}", rest.join(", ")),
        None => String::new(),
    }
}

/// The state of a watch: what to print, and the counts so far.
struct WatchSession {
    lines: EventPrinter,
    selection: Selection,
    /// Empty: the whole node.
    scopes: Vec<OwnerScope>,
    limit: Option<u64>,
    counts: EventCounts,
    /// The incidents of kills that were printed, which follow with what takes longer to find out.
    incidents: BTreeSet<String>,
    since: Instant,
}

impl WatchSession {
    fn new(context: &Context, args: &WatchArgs, selection: Selection, scopes: Vec<OwnerScope>) -> Self {
        WatchSession {
            lines: EventPrinter::new(args.output, context.stdout),
            selection,
            scopes,
            limit: args.count,
            counts: EventCounts::default(),
            incidents: BTreeSet::new(),
            since: Instant::now(),
        }
    }

    /// Whether the events that were asked for, and the incidents of the kills among them, were printed.
    fn is_full(&self) -> bool {
        self.has_all_events() && self.incidents.is_empty()
    }

    fn has_all_events(&self) -> bool {
        self.limit.is_some_and(|limit| self.counts.total() >= limit)
    }

    fn wants(&self, event: &Event) -> bool {
        let is_target = self.scopes.is_empty() || self.scopes.iter().any(|scope| scope.has_event(event));
        let is_selected = is_target && self.selection.has_pod(event.pod.as_ref());
        let is_awaited =
            event.incident.as_ref().is_some_and(|incident| self.incidents.contains(&incident.id));
        is_selected && (is_awaited || !self.has_all_events())
    }

    /// Whether the watch ended before `duration` was over.
    fn interrupted(&self, duration: Option<Duration>) -> bool {
        duration.is_some_and(|duration| self.since.elapsed() < duration)
    }

    fn handle(&mut self, event: &Event) -> io::Result<()> {
        if !self.wants(event) {
            return Ok(());
        }
        self.lines.print(&mut io::stdout().lock(), event)?;
        match &event.incident {
            // It repeats kills that have been counted.
            Some(incident) => drop(self.incidents.remove(&incident.id)),
            None => self.counts.add(event.kind),
        }
        if let Detail::Oom(kill) = &event.detail
            && event.kind == EventKind::OomKill
        {
            self.incidents.extend(kill.incident.clone());
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct EventCounts(BTreeMap<EventKind, u64>);

impl EventCounts {
    fn add(&mut self, kind: EventKind) {
        *self.0.entry(kind).or_default() += 1;
    }

    fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// `3 events (1 oom.kill, 2 dns.failure) in 31 s; nothing lost`.
    fn summary(&self, elapsed: Duration, lost: &Losses) -> String {
        let kinds: Vec<String> = self.0.iter().map(|(k, count)| format!("{count} {}", k.as_str())).collect();
        let kinds = if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) };
        format!(
            "{}{kinds} in {}; {}",
            units::plural(self.total(), "event"),
            units::duration(Duration::from_secs(elapsed.as_secs())),
            losses(lost)
        )
    }
}

#[cfg(test)]
mod tests {
    use podopsy_model::incident::OomIncident;
    use podopsy_model::{Owner, testing};

    use super::*;
    use crate::args::ListFormat;
    use crate::terminal::Terminal;

    #[test]
    fn a_counted_kill_is_followed_by_its_incident_and_by_no_other_event() {
        let mut session = WatchSession {
            lines: EventPrinter::new(ListFormat::Json, Terminal::PLAIN),
            selection: Selection::default(),
            scopes: Vec::new(),
            limit: Some(1),
            counts: EventCounts::default(),
            incidents: BTreeSet::new(),
            since: Instant::now(),
        };
        let kill = |incident: &str| {
            testing::kill("2026-01-02T03:04:05Z".parse().unwrap(), Owner::default(), incident, 1, false)
        };
        let incident = |of: &Event| {
            let Detail::Oom(kill) = &of.detail else { panic!("{of:?}") };
            let id = kill.incident.clone().unwrap();
            let incident = Some(Box::new(OomIncident { id, ..testing::incident() }));
            Event { kind: EventKind::OomIncident, incident, ..of.clone() }
        };
        let (counted, other) = (kill("a-1"), kill("a-2"));
        session.handle(&counted).unwrap();
        assert!(session.has_all_events() && !session.is_full());
        assert!(!session.wants(&other) && !session.wants(&incident(&other)));
        session.handle(&incident(&counted)).unwrap();
        assert!(session.is_full());
    }

    #[test]
    fn the_summary_counts_by_kind_and_lists_losses() {
        let mut counts = EventCounts::default();
        let lost = [("dns_ring".to_owned(), 4)].into();
        assert_eq!(
            counts.summary(Duration::from_millis(31_900), &Losses::new()),
            "0 events in 31 s; nothing lost"
        );
        for kind in [EventKind::DnsFailure, EventKind::OomKill, EventKind::DnsFailure] {
            counts.add(kind);
        }
        assert_eq!(
            counts.summary(Duration::from_secs(90), &lost),
            "3 events (1 oom.kill, 2 dns.failure) in 1 min 30 s; lost: dns_ring 4"
        );
    }
}
