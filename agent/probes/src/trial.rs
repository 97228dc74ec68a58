//! Tries every probe for real, for `podopsy doctor`.

use podopsy_model::probe::ProbeCheck;
use podopsy_model::profile::Sampling;

use crate::{CpuProbeOptions, DnsProbeOptions, ProbeOptions, Probes, Scope};

/// Loads, attaches and detaches each probe.
pub async fn check() -> Vec<ProbeCheck> {
    let none = ProbeOptions::default;
    let cpu = CpuProbeOptions {
        scope: Scope::Node,
        sampling: Sampling::Cpu { frequency_hz: 1 },
        unwind: true,
        budget: 0,
        in_pod: false,
    };
    let trials = [
        ("oom", ProbeOptions { oom: true, ..none() }),
        ("sigkill", ProbeOptions { sigkill: true, ..none() }),
        ("dns", ProbeOptions { dns: Some(DnsProbeOptions::default()), ..none() }),
        ("oncpu", ProbeOptions { cpu: Some(cpu), ..none() }),
    ];
    trials.into_iter().map(|(name, options)| outcome(name, &options)).collect()
}

fn outcome(name: &str, options: &ProbeOptions) -> ProbeCheck {
    let tried = Probes::load(options).and_then(|mut probes| probes.start_sampling().map(|()| probes));
    let (outcome, remedy) = match tried {
        Ok(probes) if probes.degraded.is_empty() => (Ok(probes.hooks.join("; ")), None),
        Ok(probes) => {
            let (hooks, left_out) = (probes.hooks.join("; "), probes.degraded.join("; "));
            (Ok(format!("{hooks}; left out: {left_out}")), None)
        }
        Err(error) => {
            let remedy = "run as root on the node, or in a container with `privileged: true`";
            (Err(format!("{error:#}")), Some(remedy.to_owned()))
        }
    };
    ProbeCheck { name: name.to_owned(), outcome, remedy }
}
