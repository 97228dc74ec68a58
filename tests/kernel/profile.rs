//! A CPU profile of a host process: no pod, no container runtime, and known shares found again.

mod support;

use std::process::{Command, Stdio};
use std::time::Duration;

use podopsy_agent::model::profile::{Profile, Sample, Sampling};
use podopsy_agent::pods::Pods;
use podopsy_agent::profiler::{Options, Scope, profile};
use support::{no_runtime, require_root};

/// A process of ours; it ends with the test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn profile_of(pid: u32) -> Profile {
    let runtime = tokio::runtime::Runtime::new().expect("a tokio runtime");
    let options = Options {
        scope: Scope::Process(pid),
        duration: Duration::from_secs(12),
        sampling: Sampling::Cpu { frequency_hz: 199 },
        unwind: false,
        node: "test-node".to_owned(),
    };
    let taken = runtime.block_on(async {
        let pods = Pods::start(no_runtime()).await?;
        profile(options, pods, std::future::pending(), |_| ()).await
    });
    taken.unwrap_or_else(|error| panic!("take a profile: {error:#}"))
}

#[test]
fn known_functions_have_their_shares_of_one_process_and_of_no_other() {
    require_root();
    let victims = podopsy_harness::victims(&|what| eprintln!("{what}")).expect("build the victims");
    let burner = || {
        let child = Command::new(victims.join("burner")).stdout(Stdio::null()).spawn();
        Running(child.expect("start the burner"))
    };
    let (wanted, _other) = (burner(), burner());
    let profile = profile_of(wanted.0.id());

    assert!(profile.samples.iter().all(|sample| sample.pid == wanted.0.id()), "another process's samples");
    assert!(profile.samples.iter().all(|sample| &*sample.comm == "burner"));
    let of = |function: &str| -> u64 {
        let has = |frame: &podopsy_agent::model::profile::Frame| {
            frame.function.as_deref().is_some_and(|name| name.contains(function))
        };
        profile.samples.iter().filter(|s| s.stack.iter().any(has)).map(|s| s.count).sum()
    };
    let shares = [("price_options", 60.0), ("discount_curve", 30.0), ("round_ticks", 10.0)];
    let total: u64 = shares.iter().map(|(function, _)| of(function)).sum();
    assert!(profile.total() > 300, "{} samples in 12 s at 199 Hz", profile.total());
    let known = |sample: &&Sample| {
        let names = || sample.stack.iter().filter_map(|frame| frame.function.as_deref());
        shares.iter().any(|(function, _)| names().any(|name| name.contains(function)))
    };
    assert!(
        total * 100 > 95 * profile.total(),
        "{total} of {} are in the burner; others:\n{}{:?}",
        profile.total(),
        support::stacks(profile.samples.iter().filter(|sample| !known(sample))),
        profile.losses
    );
    for (function, share) in shares {
        let found = of(function) as f64 / total as f64 * 100.0;
        assert!((found - share).abs() <= 5.0, "{function}: {found:.1} % instead of {share} %");
    }
}
