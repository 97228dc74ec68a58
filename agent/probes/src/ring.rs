//! Ring buffers as bytes, and the loss counters.

use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use podopsy_wire::Loss;
use tokio::io::unix::AsyncFd;
use tokio::time::{Interval, MissedTickBehavior, interval};

use podopsy_model::Losses;

/// A ring of records.
pub struct Ring {
    name: &'static str,
    fd: AsyncFd<RingFd>,
    /// When to drain without a wake-up.
    rounds: Option<Interval>,
}

struct RingFd(RingBuf<MapData>);

impl RingFd {
    fn pass_all(&mut self, mut each: impl FnMut(&[u8])) {
        while let Some(record) = self.0.next() {
            each(&record);
        }
    }
}

impl AsRawFd for RingFd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Ring {
    pub(crate) fn new(name: &'static str, map: Map) -> anyhow::Result<Ring> {
        let ring = RingBuf::try_from(map).with_context(|| format!("{name} is no ring buffer"))?;
        // SAFETY: the ring owns its file descriptor and keeps it open as long as it lives.
        let fd = unsafe { AsyncFd::register(RingFd(ring)) }.with_context(|| format!("poll {name}"))?;
        Ok(Ring { name, fd, rounds: None })
    }

    /// Drains every `every`, too: for a ring whose probe sends no wake-up for most records.
    pub(crate) fn in_rounds(self, every: Duration) -> Ring {
        let mut rounds = interval(every);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ring { rounds: Some(rounds), ..self }
    }

    /// Waits for records (or the end of a round), then passes all of them to `each`. Cancel-safe: a record is either
    /// passed on or still in the ring.
    pub async fn drain(&mut self, each: impl FnMut(&[u8])) -> anyhow::Result<()> {
        let Ring { name, fd, rounds } = self;
        let round = async {
            match rounds {
                Some(rounds) => drop(rounds.tick().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = fd.readable_mut() => {
                let mut ready = ready.with_context(|| format!("poll {name}"))?;
                ready.get_inner_mut().pass_all(each);
                ready.clear_ready();
            }
            () = round => fd.get_mut().pass_all(each),
        }
        Ok(())
    }

    /// Passes what is in the ring now, without waiting.
    pub fn drain_now(&mut self, each: impl FnMut(&[u8])) {
        self.fd.get_mut().pass_all(each);
    }
}

/// The map `LOSSES`: counters that the probes keep per CPU.
pub struct LossCounters {
    map: PerCpuArray<MapData, u64>,
}

impl LossCounters {
    pub(crate) fn new(map: Map) -> anyhow::Result<LossCounters> {
        Ok(LossCounters { map: PerCpuArray::try_from(map).context("LOSSES is no per-CPU array")? })
    }

    /// One counter, over all CPUs, since the load.
    pub fn get(&self, loss: Loss) -> u64 {
        self.map.get(&(loss as u32), 0).map_or(0, |values| values.iter().sum())
    }

    /// All losses above 0, by name. Counters that only measure (the in-flight map, kills within a container) are left out.
    pub fn read(&self) -> Losses {
        Loss::ALL
            .iter()
            .filter(|loss| !loss.is_measure())
            .map(|loss| (loss.as_str().to_owned(), self.get(*loss)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }
}

/// The probes' debug log.
pub struct ProbeLog {
    fd: AsyncFd<aya_log::EbpfLogger<&'static dyn log::Log>>,
}

impl ProbeLog {
    pub(crate) fn new(ebpf: &mut Ebpf) -> anyhow::Result<ProbeLog> {
        let logger = aya_log::EbpfLogger::init(ebpf).context("open the probes' log")?;
        // SAFETY: the logger owns its ring's file descriptor and keeps it open as long as it lives.
        let fd = unsafe { AsyncFd::register(logger) }.context("poll the probes' log")?;
        Ok(ProbeLog { fd })
    }

    /// Forwards records to `log`; ends with an error only.
    pub async fn forward(mut self) -> anyhow::Result<()> {
        loop {
            let mut ready = self.fd.readable_mut().await.context("poll the probes' log")?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}
