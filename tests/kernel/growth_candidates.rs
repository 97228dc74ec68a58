//! An OOM incident names the code by which the memory grew: a leak without frame pointers in a real pod, killed twice.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support;
use podopsy_harness::{ContainerSpec, Image, Node, PodSpec};
use podopsy_model::Event;
use podopsy_model::growth::GrowthProfile;
use podopsy_model::incident::OomIncident;
use podopsy_pods::PodsOptions;
use podopsy_recorder::{GrowthMode, RecorderOptions};
use support::{Recording, options};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 48 * MIB;
/// The leak, in bytes a second.
const RATE: u64 = 4 * MIB;
const IMAGE: &str = "registry.podopsy.test/shop/leaker:1.0";
/// An attempt takes 12 s, and an emulated machine needs long to start containers.
const LONG: Duration = Duration::from_secs(150);

/// Compiles a source of tests/victims/native with the flags of distributions.
fn compile(folder: &Path, name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("victims/native/{name}.c"));
    let output = folder.join(name);
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-static"]);
    let done =
        gcc.arg("-o").arg(&output).arg(source).output().expect("run gcc: apt-get install gcc libc6-dev");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    output
}

fn incidents<'a>(events: &'a [Event], pod: &str) -> Vec<&'a OomIncident> {
    let ours = events.iter().filter(|event| event.pod.as_ref().is_some_and(|of| of.name == pod));
    ours.filter_map(|event| event.incident.as_deref()).collect()
}

/// Runs the leak until it has been killed `times` times.
fn killed(times: usize, mode: GrowthMode) -> (Vec<Event>, podopsy_model::Losses) {
    support::require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::up().unwrap_or_else(|error| panic!("bring the node up: {error:#}"));
    // In the image, and so on an overlay, like the programs of containers.
    let image =
        node.load_image(&Image::new(IMAGE).binary(compile(folder.path(), "leaker"))).expect("load the image");
    let pods = PodsOptions { cri_socket: Some(node.cri_socket().to_owned()), ..PodsOptions::default() };
    let mut recording = Recording::start(RecorderOptions { dns: None, growth: mode, ..options() }, pods);
    let container = ContainerSpec::new("leaker", &image)
        .command(["/bin/leaker".to_owned(), RATE.to_string()])
        .memory_limit(LIMIT as i64);
    let pod = node.run_pod(PodSpec::new("shop", "notes").container(container)).expect("run the pod");
    let keeper = node.keep_running(&pod);
    recording.until("kill", LONG, |seen| incidents(seen, "notes").len() >= times);
    drop(keeper);
    recording.stop()
}

#[test]
fn the_function_that_leaks_is_on_top_without_frame_pointers() {
    let (events, losses) = killed(2, GrowthMode::Auto);
    let all = incidents(&events, "notes");
    for (attempt, incident) in all.iter().enumerate() {
        let growth = incident.growth.as_ref();
        eprintln!(
            "attempt {attempt}: {}",
            growth.map_or("not sampled".to_owned(), |growth| sum(growth, incident))
        );
    }
    eprintln!("{losses:?}");
    let incident = all[1];
    let growth =
        incident.growth.as_ref().expect("a container that was killed is a growth candidate from then on");
    assert!(growth.samples >= 50, "{growth:#?}");

    let share = |name: &str| -> f64 {
        let with = growth.paths.iter().filter(|path| path.frames.iter().any(|frame| frame.function == name));
        with.map(|path| path.share).sum()
    };
    let names: Vec<&str> = growth.paths[0].frames.iter().map(|frame| frame.function.as_str()).collect();
    assert!(
        names.starts_with(&["remember_request", "handle_request", "serve_until_killed", "main"]),
        "{names:?}"
    );
    assert!(growth.paths[0].frames[0].file.as_deref() == Some("/bin/leaker"), "{:?}", growth.paths[0]);
    // The allocator touches one page of each request before its caller does.
    assert!(growth.paths[0].share > 0.6 && share("remember_request") > 0.9, "{growth:#?}");
    assert_eq!(growth.top_self[0].frame.function, "remember_request");
    assert!(growth.complete * 10 >= growth.samples * 9, "{:?}", growth.incomplete);
    // Nothing is freed, so the estimate is what it held, without what it had before sampling began.
    let held = growth.estimated_bytes as f64 / LIMIT as f64;
    assert!((0.4..=1.2).contains(&held), "{} of {LIMIT} bytes", growth.estimated_bytes);
    assert!(growth.window_seconds < 60.0, "of this attempt alone: {} s", growth.window_seconds);

    let slope = incident.curve.as_ref().and_then(|curve| curve.growth_bytes_per_second).expect("a slope");
    assert!((slope / RATE as f64 - 1.0).abs() < 0.1, "{slope} instead of {RATE} bytes a second");
}

/// The demo's leaker as cargo builds it by default: without frame pointers.
fn leaker_without_frame_pointers(folder: &Path) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("victims/Cargo.toml");
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--locked", "--profile", "victims", "--bin", "dns-leaker", "--target"]).arg(&host);
    cargo.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(folder);
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let done = cargo.output().expect("run cargo");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    folder.join(&host).join("victims/dns-leaker")
}

/// The growth by the leaker's log, in bytes a second: `<time> stdout F …; <n> requests wait for a retry`.
fn leak_rate(log: &str, each: u64) -> f64 {
    let point = |line: &str| {
        let (time, text) = line.split_once(' ')?;
        let waiting: u64 =
            text.strip_suffix(" requests wait for a retry")?.rsplit(' ').next()?.parse().ok()?;
        Some((time.parse::<jiff::Timestamp>().ok()?, waiting * each))
    };
    let points: Vec<_> = log.lines().filter_map(point).collect();
    let (first, last) = (points.first().expect("a line"), points.last().expect("a line"));
    (last.1 - first.1) as f64 / last.0.duration_since(first.0).as_secs_f64()
}

#[test]
fn the_app_that_leaks_on_failed_lookups_is_explained_by_its_code_and_its_rate() {
    const EACH: u64 = 512 << 10;
    support::require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::up().unwrap_or_else(|error| panic!("bring the node up: {error:#}"));
    let leaker = leaker_without_frame_pointers(folder.path());
    let image = node.load_image(&Image::new(IMAGE).binary(leaker)).expect("load the image");
    let _resolver = node.resolver("nxdomain").expect("start a resolver");
    let pods = PodsOptions { cri_socket: Some(node.cri_socket().to_owned()), ..PodsOptions::default() };
    let mut recording = Recording::start(RecorderOptions { growth: GrowthMode::Auto, ..options() }, pods);
    let container = ContainerSpec::new("app", &image)
        .command(["/bin/dns-leaker", "--every", "100", "--leak", "512KiB"])
        .memory_limit(LIMIT as i64);
    let pod =
        node.run_pod(PodSpec::new("finance", "checkout-api").container(container)).expect("run the pod");
    pod.wait_exited("app", LONG).expect("it is killed");
    recording.until("first kill", LONG, |seen| !incidents(seen, "checkout-api").is_empty());
    pod.restart("app").expect("restart");
    pod.wait_exited("app", LONG).expect("it is killed again");
    let rate = leak_rate(&pod.log("app").expect("its log"), EACH);
    recording.until("second kill", LONG, |seen| incidents(seen, "checkout-api").len() == 2);
    let (events, losses) = recording.stop();

    let incident = incidents(&events, "checkout-api")[1];
    let growth = incident.growth.as_ref().expect("it was killed before");
    eprintln!("{}; {losses:?}", sum(growth, incident));
    let own = |name: &str| name.rsplit("::").next().unwrap_or_default().to_owned();
    let path: Vec<_> = growth.paths[0].frames.iter().map(|frame| own(&frame.function)).collect();
    let leak = ["copy_request", "schedule_retry", "charge_card"];
    let at =
        path.iter().position(|name| name == leak[0]).unwrap_or_else(|| panic!("no {}: {path:?}", leak[0]));
    assert!(path[at..].starts_with(&leak.map(str::to_owned)), "{path:?}");
    assert!(growth.paths[0].share > 0.8, "{growth:#?}");
    assert!(growth.complete * 10 >= growth.samples * 9, "{:?}", growth.incomplete);
    let slope = incident.curve.as_ref().and_then(|curve| curve.growth_bytes_per_second).expect("a slope");
    assert!((slope / rate - 1.0).abs() < 0.1, "{slope} instead of {rate} bytes a second");
}

#[test]
fn with_growth_off_no_container_is_sampled() {
    let (events, losses) = killed(1, GrowthMode::Off);
    assert!(incidents(&events, "notes").iter().all(|incident| incident.growth.is_none()));
    assert!(losses.keys().all(|name| !name.starts_with("growth")), "{losses:?}");
}

/// Measures the cost while there is a growth candidate, on a machine that does nothing but fault:
/// `cargo test -p podopsy-tests --test kernel -- --ignored --nocapture growth_costs_by_hand`.
#[test]
#[ignore = "a measurement of two minutes"]
fn growth_costs_by_hand() {
    support::require_root();
    fs::write("/proc/sys/kernel/bpf_stats_enabled", "1").expect("count what programs cost");
    let folder = tempfile::tempdir().expect("a folder");
    let faults = compile(folder.path(), "faults");
    let node = Node::up().unwrap_or_else(|error| panic!("bring the node up: {error:#}"));
    let image =
        node.load_image(&Image::new(IMAGE).binary(compile(folder.path(), "leaker"))).expect("load it");
    let pods = || PodsOptions { cri_socket: Some(node.cri_socket().to_owned()), ..PodsOptions::default() };
    for mode in [GrowthMode::Off, GrowthMode::Auto, GrowthMode::Off, GrowthMode::Auto] {
        let recording = Recording::start(RecorderOptions { dns: None, growth: mode, ..options() }, pods());
        let idle = own_cpu();
        std::thread::sleep(Duration::from_secs(5));
        let idle = own_cpu() - idle;
        let container = ContainerSpec::new("leaker", &image)
            .command(["/bin/leaker".to_owned(), (8 * MIB).to_string()])
            .memory_limit(512 * MIB as i64);
        let name = format!("notes-{}", std::process::id());
        let pod = node.run_pod(PodSpec::new("shop", name).container(container)).expect("run the pod");
        // At a quarter of its limit it becomes a growth candidate.
        std::thread::sleep(Duration::from_secs(20));
        let (before, began) = ((own_cpu(), programs(), page_faults()), std::time::Instant::now());
        // A process that touches memory as fast as it can, and many short processes, on each CPU.
        let load: Vec<_> = (0..2).map(|_| Command::new(&faults).arg("2000000").output()).collect();
        let shorts = Command::new("sh")
            .args(["-c", "i=0; while [ $i -lt 3000 ]; do /bin/true; i=$((i+1)); done"])
            .status();
        let (seconds, own) = (began.elapsed().as_secs_f64(), own_cpu() - before.0);
        let (programs, faulted) = (programs(), page_faults() - before.2);
        assert!(shorts.is_ok_and(|status| status.success()));
        let costs = load
            .iter()
            .map(|out| String::from_utf8_lossy(&out.as_ref().expect("run it").stdout).trim().to_owned());
        let (time, count) = (programs.0 - before.1.0, programs.1 - before.1.1);
        eprintln!(
            "{mode:?}: {:.0} faults/s; perf programs {:.0} runs/s, {} ns each, {:.3} % of a CPU; recorder {:.2} % of a CPU \
             (idle {:.2} %); a fault costs {} ns",
            faulted as f64 / seconds,
            count as f64 / seconds,
            time.checked_div(count).unwrap_or(0),
            time as f64 / 1e7 / seconds,
            own * 100.0 / seconds,
            idle * 20.0,
            costs.collect::<Vec<_>>().join(", "),
        );
        pod.remove().expect("remove the pod");
        let (_, losses) = recording.stop();
        eprintln!("  {losses:?}");
    }
    let _ = fs::write("/proc/sys/kernel/bpf_stats_enabled", "0");
}

/// This process's user and system time, seconds.
fn own_cpu() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("our own time");
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6)
        .sum()
}

/// Time (ns) and runs of all perf-event programs of this process (`BPF_PROG_TYPE_PERF_EVENT`).
fn programs() -> (u64, u64) {
    let mut sum = (0, 0);
    for entry in fs::read_dir("/proc/self/fdinfo").expect("our own descriptors").flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
        };
        if field("prog_type:") == Some(7) {
            sum.0 += field("run_time_ns:").unwrap_or(0);
            sum.1 += field("run_cnt:").unwrap_or(0);
        }
    }
    sum
}

fn page_faults() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").expect("the machine's counters");
    text.lines().find_map(|line| line.strip_prefix("pgfault ")).and_then(|n| n.parse().ok()).expect("pgfault")
}

fn sum(growth: &GrowthProfile, incident: &OomIncident) -> String {
    let path: Vec<&str> = growth
        .paths
        .first()
        .map(|path| path.frames.iter().map(|frame| frame.function.as_str()).collect())
        .unwrap_or_default();
    format!(
        "{} samples of one fault in {} in {:.1} s, {} complete, {:?}; ~{} MiB; {:.1} % {}; slope {:?}",
        growth.samples,
        growth.period,
        growth.window_seconds,
        growth.complete,
        growth.incomplete,
        growth.estimated_bytes / MIB,
        growth.paths.first().map_or(0.0, |path| path.share * 100.0),
        path.join(" ← "),
        incident.curve.as_ref().and_then(|curve| curve.growth_bytes_per_second)
    )
}
