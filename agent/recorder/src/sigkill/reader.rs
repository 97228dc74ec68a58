//! Reads the sigkill probe: SIGKILLs that processes sent, and those of the kernel that no OOM killer claimed.

use std::sync::Arc;

use podopsy_decode::{self as decode, BadRecord, SigkillDecoded};
use podopsy_model::Losses;
use podopsy_probes::SigkillMaps;
use podopsy_probes::ring::LossCounters;
use podopsy_system::clock::boot_now_ns;
use podopsy_wire::Loss;

use super::SigkillCorrelator;
use crate::attribute::Record;
use crate::reader::{Outbox, ProbeReader};

pub(crate) struct SigkillReader {
    pub maps: SigkillMaps,
    pub correlator: Arc<SigkillCorrelator>,
    pub kernel: Arc<LossCounters>,
    pub out: Outbox,
    /// Decoded and not yet handed over.
    pub signals: Vec<Result<SigkillDecoded, BadRecord>>,
}

impl SigkillReader {
    /// SIGKILLs within one container, counted in the kernel and here.
    pub fn own_kills(&self) -> u64 {
        self.kernel.get(Loss::SigkillOwn) + self.correlator.own_kills()
    }

    fn pass_on(&self, signal: SigkillDecoded) {
        if self.correlator.admits(&signal) {
            self.out.pass_on(Record::Sigkill(Box::new(signal)));
        }
    }
}

impl ProbeReader for SigkillReader {
    async fn drain(&mut self) -> anyhow::Result<()> {
        let signals = &mut self.signals;
        self.maps.events.drain(|bytes| signals.push(decode::sigkill(bytes))).await
    }

    fn drain_now(&mut self) {
        let signals = &mut self.signals;
        self.maps.events.drain_now(|bytes| signals.push(decode::sigkill(bytes)));
    }

    fn hand_over(&mut self) {
        for signal in std::mem::take(&mut self.signals) {
            match signal {
                Ok(signal) => self.pass_on(signal),
                Err(error) => self.out.reject(&error),
            }
        }
    }

    /// A signal of the kernel that the OOM killer has not claimed by now was sent by another part of the kernel.
    fn tick(&mut self, _is_last: bool) {
        for signal in self.maps.kernel_kills.take(boot_now_ns()) {
            self.pass_on(decode::sigkill_record(&signal));
        }
    }

    fn losses(&self) -> Losses {
        self.correlator.losses()
    }
}
