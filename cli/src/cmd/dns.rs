//! `podopsy dns`: prints DNS lookups until Ctrl-C or `--for`, and a summary at the end.

use std::io;
use std::time::{Duration, Instant};

use podopsy_doctor as doctor;
use podopsy_model::{Detail, DnsCounts, Event, Losses, Owner};
use podopsy_recorder::dns::lookups::summary::{LookupStatistics, LookupSummary};
use podopsy_recorder::options::{dns_ports, https_resolvers};
use podopsy_recorder::sigkill;
use podopsy_recorder::{DnsOptions, GrowthMode, Recorder, RecorderOptions};
use serde::Serialize;

use super::watch::{reader_is_gone, until_end};
use crate::args::{DnsArgs, Hook, ListFormat};
use crate::context::Context;
use crate::exit::CommandOutcome;
use crate::headroom::{self, Need};
use crate::render::dns::{LookupFilter, LookupPrinter};
use crate::render::{self, losses, units};
use crate::selection::{OwnerScope, Selection};
use crate::terminal::note;
use crate::{privilege, signals};

/// At the end: how long to wait for lookups whose pods the runtime is still looking up.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The last line of `-o json`.
#[derive(Debug, Serialize)]
struct SummaryLine<'a> {
    kind: &'static str,
    seconds: f64,
    #[serde(flatten)]
    summary: &'a LookupSummary,
    /// The kernel side's counts, which include queries that were dropped before they were reported.
    counts: &'a [DnsCounts],
    losses: &'a Losses,
    /// Where DNS was recorded, as text; null: at the node's root cgroup.
    seen: Option<&'a str>,
}

pub async fn run(context: &Context, args: DnsArgs) -> anyhow::Result<CommandOutcome> {
    privilege::require_dns("dns", args.dns_hook)?;
    headroom::require("dns", Need::of_dns(args.dns_hook), context.global.ignore_memory_limit)?;
    let pods = context.pods().await?;
    let selection = Selection::new(&args.selection.targets, &args.selection.pods)?;
    let scopes =
        OwnerScope::on_node(&selection, &pods).await.map_err(|error| {
            match doctor::dns_out_of_reach() {
        Some(_) if args.dns_hook != Hook::Cgroup => error.context(
            "pods cannot be looked up from here, and a packet socket sees only this pod: leave TARGET out",
        ),
        _ => error,
    }
        })?;
    let options = RecorderOptions {
        oom: false,
        dns: Some(DnsOptions {
            answers: true,
            aaaa_nodata: false,
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
        helpers: context.helpers(),
    };
    let (recorder, mut events) = Recorder::start(options, pods).await?;
    headroom::settle();
    let stop = until_end(signals::stop()?, args.for_);
    let target = match scopes.is_empty() {
        true => String::new(),
        false => format!(" of {}", selection.describe()),
    };
    let filter = args.lookup_filter();
    let seen_from = recorder.dns_hook().map(str::to_owned);
    if let Some(seen) = &seen_from {
        note(&format!("DNS is seen {seen}"));
    }
    note(&format!(
        "recording DNS lookups{target}; each is reported {} after its last query; Ctrl-C ends",
        units::duration(args.dns_timeout + Duration::from_secs(1))
    ));
    let mut recording = LookupRecording {
        scopes,
        selection,
        seen_from,
        args: &args,
        filter,
        lines: LookupPrinter::new(args.output, context.stdout, args.queries),
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
                Some(event) => recording.handle(&event)?,
                None => anyhow::bail!("the recorder stopped unexpectedly; run podopsy -v dns for its log"),
            },
            () = &mut stop => break,
            _ = reader_check.tick() => if reader_is_gone() { return Ok(CommandOutcome::Success) },
        }
    }
    let elapsed = recording.since.elapsed();
    let mut counts = recorder.dns_counts().await;
    counts.retain(|counts| recording.has_counts(&counts.owner));
    // Drain the channel while the recorder stops: it waits for capacity in the channel to send the last lookups.
    let mut ending = std::pin::pin!(recorder.stop());
    let mut lost = None;
    let end = tokio::time::Instant::now() + DRAIN_TIMEOUT;
    loop {
        tokio::select! {
            stopped = &mut ending, if lost.is_none() => lost = Some(stopped?),
            event = tokio::time::timeout_at(end, events.recv()) => match event {
                Ok(Some(event)) => recording.handle(&event)?,
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
    recording.finish(context, elapsed, &counts, &lost)?;
    Ok(CommandOutcome::Success)
}

/// The state of a recording: what to show, and the counts so far.
struct LookupRecording<'a> {
    /// Empty: the whole node.
    scopes: Vec<OwnerScope>,
    selection: Selection,
    /// Where DNS is recorded, as text; None: at the node's root cgroup.
    seen_from: Option<String>,
    args: &'a DnsArgs,
    filter: LookupFilter,
    lines: LookupPrinter,
    tally: LookupStatistics,
    lookups: u64,
    failed: u64,
    since: Instant,
}

impl LookupRecording<'_> {
    fn handle(&mut self, event: &Event) -> io::Result<()> {
        let is_target = self.scopes.is_empty() || self.scopes.iter().any(|scope| scope.has_event(event));
        if !is_target || !self.selection.has_pod(event.pod.as_ref()) {
            return Ok(());
        }
        match &event.detail {
            Detail::Dns(transaction) => self.tally.add_query(transaction),
            Detail::Lookup(lookup) => {
                self.tally.add_lookup(&render::event::pod(event), lookup);
                self.lookups += 1;
                self.failed += u64::from(lookup.result.is_failure());
                if self.filter.matches(lookup) {
                    self.lines.print(&mut io::stdout().lock(), event, lookup)?;
                }
            }
            Detail::Oom(_) | Detail::Sigkill(_) => {}
        }
        Ok(())
    }

    fn has_counts(&self, owner: &Owner) -> bool {
        let is_target = self.scopes.is_empty() || self.scopes.iter().any(|scope| scope.has_owner(owner));
        is_target && self.selection.has_pod(owner.pod.as_ref())
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
            let line =
                SummaryLine { kind: "dns.summary", seconds, summary: &summary, counts, losses: lost, seen };
            serde_json::to_writer(&mut out, &line)?;
            io::Write::write_all(&mut out, b"\n")?;
        } else {
            render::dns::summary(&mut out, context.stdout, &summary)?;
            render::dns::not_shown(&mut out, context.stdout, counts)?;
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
