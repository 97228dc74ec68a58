//! An OOM kill's report tells which code the memory grew by: a leak without frame pointers, in a real pod, killed twice.

mod support;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use podopsy_agent::model::Event;
use podopsy_agent::model::growth::GrowthProfile;
use podopsy_agent::model::incident::Incident;
use podopsy_agent::pods::Options as PodsOptions;
use podopsy_agent::recorder::{GrowthMode, Options};
use podopsy_harness::{ContainerSpec, Image, Node, PodSpec};
use support::{Recording, options};

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 48 * MIB;
/// What the leak keeps, bytes a second.
const RATE: u64 = 4 * MIB;
const IMAGE: &str = "registry.podopsy.test/shop/leaker:1.0";
/// A life is 12 s; an emulated machine takes its time to start containers.
const LONG: Duration = Duration::from_secs(150);

/// Compiles the leak as distributions compile.
fn leaker(folder: &Path) -> std::path::PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("victims/native/leaker.c");
    let output = folder.join("leaker");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-static"]);
    let done =
        gcc.arg("-o").arg(&output).arg(source).output().expect("run gcc: apt-get install gcc libc6-dev");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    output
}

fn incidents<'a>(events: &'a [Event], pod: &str) -> Vec<&'a Incident> {
    let ours = events.iter().filter(|event| event.pod.as_ref().is_some_and(|of| of.name == pod));
    ours.filter_map(|event| event.incident.as_deref()).collect()
}

/// Runs the leak until it was killed that often.
fn killed(times: usize, mode: GrowthMode) -> (Vec<Event>, podopsy_agent::model::Losses) {
    support::require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let node = Node::up().unwrap_or_else(|error| panic!("bring the node up: {error:#}"));
    // In the image, and so on an overlay, as programs of containers are.
    let image = node.load_image(&Image::new(IMAGE).binary(leaker(folder.path()))).expect("load the image");
    let pods = PodsOptions { cri_socket: Some(node.cri_socket().to_owned()), ..PodsOptions::default() };
    let mut recording = Recording::start(Options { dns: false, growth: mode, ..options() }, pods);
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
    for (life, incident) in all.iter().enumerate() {
        let growth = incident.growth.as_ref();
        eprintln!("life {life}: {}", growth.map_or("not sampled".to_owned(), |growth| sum(growth, incident)));
    }
    eprintln!("{losses:?}");
    let incident = all[1];
    let growth = incident.growth.as_ref().expect("a container that was killed is a suspect from then on");
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
    assert!(growth.paths[0].share > 0.8 && share("main") > 0.9, "{growth:#?}");
    assert_eq!(growth.top_self[0].frame.function, "remember_request");
    assert!(growth.complete * 10 >= growth.samples * 9, "{:?}", growth.incomplete);
    // Nothing is given back, so that the estimate is of what it held, but for what was before the first look.
    let held = growth.estimated_bytes as f64 / LIMIT as f64;
    assert!((0.4..=1.2).contains(&held), "{} of {LIMIT} bytes", growth.estimated_bytes);
    assert!(growth.window_seconds < 60.0, "of this life alone: {} s", growth.window_seconds);

    let slope = incident.curve.as_ref().and_then(|curve| curve.growth_bytes_per_second).expect("a slope");
    assert!((slope / RATE as f64 - 1.0).abs() < 0.1, "{slope} instead of {RATE} bytes a second");
}

#[test]
fn nobody_is_sampled_when_nobody_is_asked_for() {
    let (events, losses) = killed(1, GrowthMode::Off);
    assert!(incidents(&events, "notes").iter().all(|incident| incident.growth.is_none()));
    assert!(losses.keys().all(|name| !name.starts_with("growth")), "{losses:?}");
}

fn sum(growth: &GrowthProfile, incident: &Incident) -> String {
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
