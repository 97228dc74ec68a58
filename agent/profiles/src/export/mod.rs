//! One file a format.
//!
//! Must not know: how a profile was made. A format is handed a finished [`podopsy_model::profile::Profile`] and a writer.

pub mod differential;
pub mod firefox;
pub mod folded;
mod format;
pub mod merge;
pub mod pprof;
pub mod speedscope;
pub mod svg;

use std::borrow::Cow;

pub use format::Format;

use podopsy_model::owner::{KnownBy, Owner};
use podopsy_model::profile::{Frame, Profile, Quality, Sampling};

/// What a frame is called: its function, else `module+0xoffset`: an unknown frame is shown, and never hidden.
fn frame_name(frame: &Frame) -> Cow<'_, str> {
    match (&frame.function, &frame.module) {
        (Some(function), _) => Cow::Borrowed(function),
        (None, Some(module)) => {
            Cow::Owned(format!("{}+{:#x}", module.rsplit('/').next().unwrap_or(module), frame.offset))
        }
        (None, None) => Cow::Owned(format!("[no mapping]+{:#x}", frame.offset)),
    }
}

/// True for frames of the kernel or its modules: their modules are in brackets, and are none of the process's areas.
fn is_kernel(frame: &Frame) -> bool {
    let in_process = ["[vdso]", "[vsyscall]", "[anonymous]", podopsy_model::profile::PYTHON_MODULE];
    frame.module.as_deref().is_some_and(|module| module.starts_with('[') && !in_process.contains(&module))
}

/// `namespace/pod/container`, or as much as is known; `host` for what is in no container.
fn owner_name(owner: &Owner) -> String {
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
fn period(sampling: Sampling) -> u64 {
    match sampling {
        Sampling::Cpu { frequency_hz } => 1_000_000_000 / frequency_hz.max(1),
        Sampling::Growth { every } => every,
    }
}

/// What was sampled and of whom, as a heading.
fn title(profile: &Profile) -> String {
    let what = match profile.sampling {
        Sampling::Cpu { .. } => "On-CPU",
        Sampling::Growth { .. } => "Growth",
    };
    format!("{what}: {}", whose(profile))
}

/// The one owner, or how many there are.
fn whose(profile: &Profile) -> String {
    let mut owners: Vec<String> = profile.samples.iter().map(|sample| owner_name(&sample.owner)).collect();
    owners.sort();
    owners.dedup();
    match owners.as_slice() {
        [] => format!("nothing ran on {}", profile.node),
        [one] => format!("{one} on {}", profile.node),
        many => format!("{} workloads on {}", many.len(), profile.node),
    }
}

/// What is missing from a profile, a line each; `losses: none` rather than silence.
fn loss_lines(profile: &Profile) -> Vec<String> {
    if profile.losses.is_empty() {
        return vec!["losses: none".to_string()];
    }
    profile.losses.iter().map(|(name, count)| format!("loss {name}: {count}")).collect()
}

/// How whole the user stacks are: a line for each owner, with the reasons of those that are not.
fn quality_lines(profile: &Profile) -> Vec<String> {
    let line = |quality: &Quality| {
        let reasons: String =
            quality.incomplete.iter().map(|(reason, count)| format!(", {reason} {count}")).collect();
        let (owner, samples) = (owner_name(&quality.owner), quality.samples);
        format!("user stacks of {owner}: {} of {samples} complete{reasons}", quality.complete)
    };
    profile.quality.iter().map(line).collect()
}

#[cfg(test)]
mod agreement;
#[cfg(any(test, feature = "testing"))]
pub mod example;
