//! Empties the rings of all probes. Never waits for anything but them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use podopsy_model::Losses;
use podopsy_pods::Pods;
use podopsy_probes::ring::LossCounters;
use podopsy_system::sync::lock;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use crate::dns::reader::DnsReader;
use crate::dns::tap::TapLosses;
use crate::growth::sampling::Growth;
use crate::oom::reader::OomReader;
use crate::reader::{Outbox, ProbeReader};
use crate::sigkill::reader::SigkillReader;
use crate::totals::Totals;

/// How often readers look at their maps: the error of a timeout's time.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// The readers of all probes, and the sum of all losses.
pub(crate) struct Collector {
    pub oom: OomReader,
    pub dns: DnsReader,
    pub sigkill: SigkillReader,
    pub losses: LossSources,
}

/// Where losses are counted, beside the readers.
pub(crate) struct LossSources {
    pub kernel: Arc<LossCounters>,
    pub outbox: Outbox,
    pub pods: Arc<Pods>,
    pub growth: Option<Growth>,
    /// Losses of the packet socket, where it stands in for the dns probe.
    pub tap: TapLosses,
    pub totals: Arc<Totals>,
}

impl Collector {
    /// Collects until `stopped`, and then once more what is there.
    pub async fn run(mut self, mut stopped: oneshot::Receiver<()>) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                drained = self.oom.drain() => drained?,
                drained = self.dns.drain() => drained?,
                drained = self.sigkill.drain() => drained?,
                _ = ticks.tick() => self.tick(false),
                _ = &mut stopped => break,
            }
            self.hand_over();
        }
        self.oom.drain_now();
        self.dns.drain_now();
        self.sigkill.drain_now();
        self.hand_over();
        self.tick(true);
        Ok(())
    }

    /// Passes on what was drained. Kills carry the losses of this moment, summed once for all of them.
    fn hand_over(&mut self) {
        if self.oom.has_kills() {
            self.sum_losses();
        }
        self.sigkill.hand_over();
        self.oom.hand_over();
        self.dns.hand_over();
    }

    fn tick(&mut self, is_last: bool) {
        self.sigkill.tick(is_last);
        self.dns.tick(is_last);
        self.oom.tick(is_last);
        self.sum_losses();
    }

    /// Sums the losses of every stage for events and the summary.
    fn sum_losses(&self) {
        let sources = &self.losses;
        let totals = &sources.totals;
        let mut sum = sources.kernel.read();
        add(&mut sum, self.oom.losses());
        add(&mut sum, self.dns.losses());
        add(&mut sum, self.sigkill.losses());
        add(&mut sum, sources.outbox.losses());
        add(&mut sum, sources.pods.status().losses);
        if let Some(growth) = &sources.growth {
            add(&mut sum, growth.losses());
        }
        add(&mut sum, totals.shed.losses());
        add(&mut sum, lock(&sources.tap).clone());
        add(&mut sum, totals.attribution_losses());
        sum.retain(|_, count| *count > 0);
        *lock(&totals.losses) = sum;
        totals.own_kills.store(self.sigkill.own_kills(), Relaxed);
    }
}

/// Adds counters by name: two stages may count the same loss.
pub(crate) fn add(sum: &mut Losses, more: impl IntoIterator<Item = (String, u64)>) {
    for (name, count) in more {
        *sum.entry(name).or_default() += count;
    }
}
