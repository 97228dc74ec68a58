//! Profile formats, one file each.
//!
//! A format gets a finished [`podopsy_model::profile::Profile`] and a writer. It must not depend on how the profile was
//! made.

pub mod differential;
pub mod firefox;
pub mod folded;
mod format;
pub mod merge;
pub mod pprof;
pub mod speedscope;
pub mod svg;

pub use format::Format;

use podopsy_model::owner::{KnownBy, Owner};
use podopsy_model::profile::{Completeness, Frame, Profile, Sampling};

/// True for frames of the kernel and of its modules. Their modules are in brackets, like those of the process's own
/// areas without a file, which are listed here.
fn is_kernel(frame: &Frame) -> bool {
    let in_process = ["[vdso]", "[vsyscall]", "[anonymous]", podopsy_model::profile::PYTHON_MODULE];
    frame.module.as_deref().is_some_and(|module| module.starts_with('[') && !in_process.contains(&module))
}

/// `namespace/pod/container`, or the known part of it; `host` for processes in no container.
fn owner_path(owner: &Owner) -> String {
    let container = owner.container.as_ref();
    match (&owner.pod, container) {
        (Some(pod), Some(container)) => format!("{}/{}/{}", pod.namespace, pod.name, container.name),
        (Some(pod), None) => format!("{}/{}", pod.namespace, pod.name),
        (None, Some(container)) => format!("container:{}", container.id),
        (None, None) => match (owner.known_by, &owner.cgroup.path) {
            (KnownBy::Host, _) => "host".to_string(),
            (_, Some(path)) => format!("cgroup:{path}"),
            (_, None) => "unknown".to_string(),
        },
    }
}

/// What one sample stands for: nanoseconds of CPU time, or page faults.
fn sample_value(sampling: Sampling) -> u64 {
    match sampling {
        Sampling::Cpu { frequency_hz } => 1_000_000_000 / frequency_hz.max(1),
        Sampling::Growth { every } => every,
    }
}

/// A heading with the kind of the profile and its owner: `On-CPU: shop/checkout-0/api on node-1`.
fn title(profile: &Profile) -> String {
    let kind = match profile.sampling {
        Sampling::Cpu { .. } => "On-CPU",
        Sampling::Growth { .. } => "Growth",
    };
    format!("{kind}: {}", owners(profile))
}

/// The only owner, or the number of owners.
fn owners(profile: &Profile) -> String {
    let mut owners: Vec<String> = profile.samples.iter().map(|sample| owner_path(&sample.owner)).collect();
    owners.sort();
    owners.dedup();
    match owners.as_slice() {
        [] => format!("nothing ran on {}", profile.node),
        [one] => format!("{one} on {}", profile.node),
        many => format!("{} workloads on {}", many.len(), profile.node),
    }
}

/// The loss counters, one line each. Without losses there is one line too, so that it is visible that none occurred.
fn loss_lines(profile: &Profile) -> Vec<String> {
    if profile.losses.is_empty() {
        return vec!["losses: none".to_string()];
    }
    profile.losses.iter().map(|(name, count)| format!("loss {name}: {count}")).collect()
}

/// The completeness of the user stacks: one line per owner, with the reasons for incomplete stacks.
fn completeness_lines(profile: &Profile) -> Vec<String> {
    let line = |quality: &Completeness| {
        let reasons: String =
            quality.incomplete.iter().map(|(reason, count)| format!(", {reason} {count}")).collect();
        let (owner, samples) = (owner_path(&quality.owner), quality.samples);
        format!("user stacks of {owner}: {} of {samples} complete{reasons}", quality.complete)
    };
    profile.quality.iter().map(line).collect()
}

#[cfg(test)]
mod agreement;
#[cfg(any(test, feature = "testing"))]
pub mod example;
