//! A growth profile of a host process: the code path by which the resident set grows, without hooks in the allocator.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support;
use podopsy_model::profile::{Frame, Sample, Sampling};
use podopsy_pods::Pods;
use podopsy_recorder::cpu::{ProfileOptions, Scope, profile};
use support::{no_runtime, require_root};

#[test]
fn the_function_that_touches_new_memory_is_on_top() {
    require_root();
    let victims = podopsy_harness::victims(&|what| eprintln!("{what}")).expect("build the victims");
    // The process begins when the sampler runs, and ends by itself: 64 MiB, in steps smaller than a huge page.
    let leak = ["--wait", "3000", "--step", "256KiB", "--every", "20", "--up-to", "64MiB"];
    let child = Command::new(victims.join("leak")).args(leak).stdout(Stdio::null()).spawn();
    let mut child = child.expect("start the leak");
    let options = ProfileOptions {
        scope: Scope::Process(child.id()),
        duration: Duration::from_secs(10),
        sampling: Sampling::Growth { every: 8 },
        unwind: false,
        node: "test-node".to_owned(),
        helpers: support::helpers(),
    };
    let runtime = tokio::runtime::Runtime::new().expect("a tokio runtime");
    let taken = runtime.block_on(async {
        let pods = Pods::start(no_runtime()).await?;
        profile(options, pods, std::future::pending(), |_| ()).await
    });
    let _ = child.kill();
    let _ = child.wait();
    let profile = taken.unwrap_or_else(|error| panic!("take a profile: {error:#}"));

    assert!(profile.total() >= 100, "{} samples", profile.total());
    let is = |frame: &Frame, name: &str| frame.function.as_deref().is_some_and(|found| found.contains(name));
    let on_path = |sample: &&Sample| {
        let mut rest = sample.stack.iter();
        ["keep", "append_history", "handle_order", "serve_orders"]
            .iter()
            .all(|name| rest.any(|frame| is(frame, name)))
    };
    let grown: u64 = profile.samples.iter().filter(on_path).map(|sample| sample.count).sum();
    assert!(
        grown * 100 >= 90 * profile.total(),
        "{grown} of {} are on the path that leaks; others:\n{}{:?}",
        profile.total(),
        support::stacks(profile.samples.iter().filter(|sample| !on_path(sample))),
        profile.losses
    );
}
