//! Reads the oom probe: records of victims, and programs that have just started.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use podopsy_decode::{self as decode, BadRecord, OomDecoded};
use podopsy_model::Losses;
use podopsy_probes::OomMaps;
use podopsy_stacks::Helpers;
use podopsy_stacks::symbolize::ProgramImage;

use super::OomExaminer;
use super::instruments::OomInstruments;
use super::reconcile::KillReconciler;
use super::recover::MissedKills;
use super::stacks::{KillStacks, UnnamedStack};
use crate::attribute::Record;
use crate::reader::{Outbox, ProbeReader};
use crate::totals::Totals;
use podopsy_pods::Pods;

pub(crate) struct OomReader {
    maps: OomMaps,
    stacks: KillStacks,
    examiner: Arc<OomExaminer>,
    reconciler: KillReconciler,
    out: Outbox,
    totals: Arc<Totals>,
    pods: Arc<Pods>,
    /// Decoded and not yet handed over.
    kills: Vec<Result<OomDecoded, BadRecord>>,
    execs: Vec<Result<u32, BadRecord>>,
    /// Victims that the probe saw.
    kills_seen: u64,
    /// Kills while the recorder was down, of which only the number is known.
    missed_unknown: u64,
    files_not_held: u64,
}

impl OomReader {
    pub fn new(
        maps: OomMaps,
        instruments: &OomInstruments,
        out: Outbox,
        totals: Arc<Totals>,
        helpers: &Helpers,
        pods: Arc<Pods>,
    ) -> anyhow::Result<OomReader> {
        Ok(OomReader {
            maps,
            stacks: KillStacks::start(helpers)?,
            examiner: instruments.examiner.clone(),
            reconciler: KillReconciler::new(instruments.kills_at_start),
            out,
            totals,
            pods,
            kills: Vec::new(),
            execs: Vec::new(),
            kills_seen: 0,
            missed_unknown: instruments.missed.as_ref().map_or(0, MissedKills::unknown),
            files_not_held: 0,
        })
    }

    /// Whether kills wait for [`ProbeReader::hand_over`].
    pub fn has_kills(&self) -> bool {
        !self.kills.is_empty()
    }

    /// Asks for the stack's names, which follow in the incident, and passes the kill on.
    fn pass_on(&mut self, mut kill: OomDecoded) {
        self.kills_seen += 1;
        let stack = UnnamedStack {
            pid: kill.trigger.pid,
            start_ns: kill.trigger.start_ns,
            image: ProgramImage(kill.image),
            kernel: std::mem::take(&mut kill.kernel),
            user: std::mem::take(&mut kill.user),
        };
        let cgroup = kill.trigger.cgroup_id;
        let container = self.pods.container_key(cgroup).unwrap_or_else(|| format!("cgroup:{cgroup}").into());
        let names = self.stacks.ask(container, stack);
        if names.is_none() {
            self.totals.stacks_unnamed.fetch_add(1, Relaxed);
        }
        self.out.pass_on(Record::Oom(Box::new(kill), names));
    }
}

impl ProbeReader for OomReader {
    async fn drain(&mut self) -> anyhow::Result<()> {
        let OomReader { maps: OomMaps { events, execs }, kills, execs: started, .. } = self;
        tokio::select! {
            drained = events.drain(|bytes| kills.push(decode::oom(bytes))) => drained,
            drained = execs.drain(|bytes| started.push(decode::exec(bytes))) => drained,
        }
    }

    fn drain_now(&mut self) {
        let kills = &mut self.kills;
        self.maps.events.drain_now(|bytes| kills.push(decode::oom(bytes)));
    }

    fn hand_over(&mut self) {
        for exec in std::mem::take(&mut self.execs) {
            match exec {
                Ok(pid) => self.files_not_held += u64::from(!self.stacks.hold(pid)),
                Err(error) => self.out.reject(&error),
            }
        }
        for kill in std::mem::take(&mut self.kills) {
            match kill {
                Ok(kill) => self.pass_on(kill),
                Err(error) => self.out.reject(&error),
            }
        }
    }

    fn tick(&mut self, is_last: bool) {
        self.reconciler.update(self.kills_seen, self.examiner.known_differences(), is_last);
    }

    fn losses(&self) -> Losses {
        let mut losses = Losses::from_iter(self.examiner.losses());
        losses.extend(self.reconciler.losses());
        let own = [
            ("oom_missed_while_down", self.missed_unknown),
            ("oom_stacks_unnamed", self.totals.stacks_unnamed.load(Relaxed)),
            ("oom_files_not_held", self.files_not_held),
        ];
        losses.extend(own.map(|(name, count)| (name.to_owned(), count)));
        losses
    }
}
