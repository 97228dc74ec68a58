//! A CPU profile of a host process: no pod, no container runtime, and known shares found again.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support;
use podopsy_model::profile::{Frame, Profile, Sample, Sampling};
use podopsy_pods::Pods;
use podopsy_recorder::cpu::{ProfileOptions, Scope, profile};
use support::{Running, no_runtime, require_root};
use tokio::sync::Notify;

/// The longest time to wait for enough samples; an emulated machine is slow.
const LONGEST: Duration = Duration::from_secs(60);

/// Profiles a process by unwind tables until there are `enough` samples.
fn by_tables(pid: u32, enough: u64) -> Profile {
    let runtime = tokio::runtime::Runtime::new().expect("a tokio runtime");
    let options = ProfileOptions {
        scope: Scope::Process(pid),
        duration: LONGEST,
        sampling: Sampling::Cpu { frequency_hz: 199 },
        unwind: true,
        node: "test-node".to_owned(),
        helpers: support::helpers(),
    };
    let there = Notify::new();
    let progress = |samples| {
        if samples >= enough {
            there.notify_one();
        }
    };
    let taken = runtime.block_on(async {
        let pods = Pods::start(no_runtime()).await?;
        profile(options, pods, there.notified(), progress).await
    });
    taken.unwrap_or_else(|error| panic!("take a profile: {error:#}"))
}

/// Copies zeros in pieces so small that most of its time is in the kernel.
fn copier(program: &Path) -> Running {
    let mut command = Command::new(program);
    command.args(["if=/dev/zero", "of=/dev/null", "bs=64k"]);
    Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start dd"))
}

fn in_kernel(frame: &Frame) -> bool {
    frame.module.as_deref() == Some("[kernel]")
}

fn has(sample: &Sample, function: &str) -> bool {
    sample.stack.iter().any(|frame| frame.function.as_deref().is_some_and(|name| name.contains(function)))
}

fn profile_of(pid: u32) -> Profile {
    let runtime = tokio::runtime::Runtime::new().expect("a tokio runtime");
    let options = ProfileOptions {
        scope: Scope::Process(pid),
        duration: Duration::from_secs(12),
        sampling: Sampling::Cpu { frequency_hz: 199 },
        unwind: false,
        node: "test-node".to_owned(),
        helpers: support::helpers(),
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
        let has = |frame: &podopsy_model::profile::Frame| {
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
        assert!(
            (found - share).abs() <= 5.0,
            "{function}: {found:.1} % instead of {share} % of {total} samples"
        );
    }
}

#[test]
fn work_in_the_kernel_leads_back_to_the_program_that_asked_for_it() {
    require_root();
    let copier = copier(Path::new("/usr/bin/dd"));
    let profile = by_tables(copier.0.id(), 300);
    let of = |chosen: &dyn Fn(&Sample) -> bool| -> u64 {
        profile.samples.iter().filter(|sample| chosen(sample)).map(|sample| sample.count).sum()
    };
    let (kernel, total) = (of(&|sample| sample.stack.iter().any(in_kernel)), profile.total());
    let rooted = of(&|sample| has(sample, "__libc_start_main"));
    eprintln!("{total} samples, {kernel} in the kernel, {rooted} from main; {:?}", profile.quality);
    assert!(total >= 100 && kernel * 10 > total * 3, "{kernel} of {total} samples were taken in the kernel");
    assert!(
        rooted * 100 >= total * 97,
        "{rooted} of {total} lead to main; others:\n{}",
        support::stacks(profile.samples.iter().filter(|sample| !has(sample, "__libc_start_main")))
    );
}

/// An overlay without an upper layer, which can be mounted on any file system; unmounted when this is dropped.
struct Overlay(tempfile::TempDir);

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path().join("merged")).status();
    }
}

#[test]
fn a_container_s_file_has_its_table_at_the_first_sample() {
    require_root();
    let overlay = Overlay(tempfile::tempdir().expect("a folder"));
    let folder = overlay.0.path();
    for name in ["lower", "empty", "merged"] {
        std::fs::create_dir(folder.join(name)).expect("make a folder");
    }
    std::fs::copy("/usr/bin/dd", folder.join("lower/dd")).expect("copy dd");
    let layers = format!("lowerdir={0}/lower:{0}/empty", folder.display());
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "overlay", "-o", &layers]).arg(folder.join("merged"));
    assert!(mount.status().expect("run mount").success(), "no overlay: {layers}");

    let copier = copier(&folder.join("merged/dd"));
    let profile = by_tables(copier.0.id(), 100);
    let late: u64 = profile.quality.iter().filter_map(|quality| quality.incomplete.get("no_table_yet")).sum();
    assert_eq!(late, 0, "the file has two names, and was asked for by the other: {:?}", profile.quality);
    let (user, complete) = profile.complete();
    assert!(user >= 50 && complete * 100 >= user * 97, "{complete} of {user}: {:?}", profile.quality);
}
