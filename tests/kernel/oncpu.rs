//! Stacks of programs without frame pointers: the share of complete ones, and whether they are correct.
//!
//! Each program runs in its own memory cgroup, so that its forks are sampled, and other processes are not.

use std::process::Command;
use std::time::Duration;

use crate::support;
use podopsy_model::profile::{Frame, Profile, Sample, Sampling};
use podopsy_profiles::export::Format;
use podopsy_recorder::cpu::Scope;
use support::program::{Running, compile, folder, has, take_profile};

/// Enough to judge which stacks are complete.
const ENOUGH: u64 = 4000;
const LONGEST: Duration = Duration::from_secs(20);
/// With so many samples, the standard deviation of a share is at most half a percentage point: it is right within 2 points in
/// all but one of 15,000 runs.
const ENOUGH_FOR_SHARES: u64 = 10_000;
/// On a machine with other work the program gets a part of a CPU.
const LONGEST_FOR_SHARES: Duration = Duration::from_secs(90);
const FREQUENCY: u64 = 997;

impl Running {
    /// Samples it until there are [`ENOUGH`] samples.
    fn profile(&self) -> Profile {
        self.profile_of(Scope::Cgroups(vec![self.cgroup.id()]), ENOUGH)
    }

    /// Samples it until there are [`ENOUGH_FOR_SHARES`] samples.
    fn profile_for_shares(&self) -> Profile {
        let scope = Scope::Cgroups(vec![self.cgroup.id()]);
        self.profile_within(scope, ENOUGH_FOR_SHARES, LONGEST_FOR_SHARES)
    }

    fn profile_of(&self, scope: Scope, least: u64) -> Profile {
        self.profile_within(scope, least, LONGEST)
    }

    fn profile_within(&self, scope: Scope, least: u64, longest: Duration) -> Profile {
        take_profile(scope, longest, Sampling::Cpu { frequency_hz: FREQUENCY }, true, least)
    }
}

const C: &[&str] = &["gcc", "-O2", "-fomit-frame-pointer", "-g1"];
const CXX: &[&str] = &["g++", "-O2", "-fomit-frame-pointer", "-g1", "-pthread"];

/// The share of samples whose stack has the function, in percent of those with a user stack.
fn share(profile: &Profile, function: &str) -> f64 {
    let (user, _) = profile.complete();
    let found: u64 =
        profile.samples.iter().filter(|sample| has(sample, function)).map(|sample| sample.count).sum();
    found as f64 * 100.0 / user as f64
}

/// Prints how complete the profile is, and fails below `least` percent.
fn complete(name: &str, profile: &Profile, least: f64) {
    let (user, complete) = profile.complete();
    let percent = complete as f64 * 100.0 / user.max(1) as f64;
    let reasons: Vec<_> = profile.quality.iter().map(|quality| &quality.incomplete).collect();
    eprintln!(
        "{name}: {complete} of {user} stacks complete, {percent:.2} %; {reasons:?}; {:?}",
        profile.unwind
    );
    let cut = |sample: &&Sample| {
        let last = sample.stack.last().and_then(|frame| frame.function.as_deref());
        last.is_some_and(|name| name.starts_with("[unwind"))
    };
    for sample in profile.samples.iter().filter(cut).take(3) {
        let names: Vec<_> =
            sample.stack.iter().map(|frame| (&frame.function, &frame.module, frame.offset)).collect();
        eprintln!("  for one: {names:?}");
    }
    assert!(user > 100, "{name}: only {user} samples");
    assert!(percent >= least, "{name}: only {percent:.2} % of its stacks are complete");
}

/// By the sources, `leaf_a` has 60,000 rounds of the same loop and `leaf_b` 40,000.
fn leaves_have_their_shares(name: &str, profile: &Profile) {
    let (user, _) = profile.complete();
    // Some of the samples are not of user code.
    assert!(user * 10 >= ENOUGH_FOR_SHARES * 9, "{name}: {user} samples are too few to judge a share");
    for (leaf, truth) in [("leaf_a", 60.0), ("leaf_b", 40.0)] {
        let found = share(profile, leaf);
        assert!(
            (found - truth).abs() <= 2.0,
            "{name}: {leaf}: {found:.1} % of {user} samples instead of {truth} %"
        );
    }
}

#[test]
fn a_deep_program_without_frame_pointers_is_complete_and_its_shares_are_true() {
    let running = Running::start("deep", &compile(CXX, "deep.cc", "deep"));
    let profile = running.profile_for_shares();
    complete("deep C++", &profile, 99.5);
    leaves_have_their_shares("deep C++", &profile);
    // Every stack with a leaf has all of its callers, in order.
    for sample in profile.samples.iter().filter(|sample| has(sample, "leaf_")) {
        let depths: Vec<String> = sample
            .stack
            .iter()
            .filter_map(|frame| frame.function.as_deref()?.split_once("deep<")?.1.split_once('>'))
            .map(|(depth, _)| depth.to_owned())
            .collect();
        let expected: Vec<String> = (0..=40).map(|depth| depth.to_string()).collect();
        assert_eq!(depths, expected);
        assert_eq!(sample.stack.last().and_then(|frame| frame.function.as_deref()), Some("_start"));
    }
}

#[test]
fn on_a_whole_node_running_programs_are_complete_and_later_ones_soon_are() {
    let program = compile(CXX, "deep.cc", "deep");
    let running = Running::start("node", &program);
    let later = compile(&[CXX, &["-DLATER"]].concat(), "deep.cc", "later");
    let starter = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(1500));
        Running::start("later", &later)
    });
    let profile = running.profile_of(Scope::Node, ENOUGH * 2);
    let later = starter.join().expect("start another program");
    for (name, of, least) in [("ran before", &running, 99.0), ("started later", &later, 95.0)] {
        let quality = profile.quality.iter().find(|quality| quality.owner.cgroup.id == of.cgroup.id());
        let quality = quality.unwrap_or_else(|| panic!("{name}: no sample of it"));
        let percent = quality.complete as f64 * 100.0 / quality.samples as f64;
        eprintln!(
            "{name}: {percent:.2} % of {}; {:?}; {:?}",
            quality.samples, quality.incomplete, profile.unwind
        );
        assert!(quality.samples > 100 && percent >= least, "{name}: {percent:.2} %: {quality:?}");
    }
    assert!(profile.unwind.kernel_bytes <= podopsy_stacks::unwind::MAX_BYTES);
}

#[test]
fn stock_programs_are_complete() {
    let python = "/usr/bin/python3 -c 'def f(n):\n    return sum(i * i for i in range(500)) if n == 0 else f(n - 1) + 1\nwhile True: f(20)'";
    for (name, program) in [
        ("python3", python),
        ("openssl rsa2048", "openssl speed -seconds 60 rsa2048"),
        ("openssl sha256", "openssl speed -seconds 60 sha256"),
        ("xz", "xz -9 -T1 -c /dev/zero"),
    ] {
        let profile = Running::start("stock", program).profile();
        complete(name, &profile, 99.5);
        assert!(share(&profile, "_start") > 99.0, "{name}: stacks do not begin at the program's entry");
    }
}

#[test]
fn a_signal_handler_leads_to_the_code_that_it_interrupted() {
    let profile = Running::start("signals", &compile(C, "signals.c", "signals")).profile();
    complete("signal handler", &profile, 99.5);
    assert!(share(&profile, "handler") > 2.0, "no sample in the handler");
    for sample in profile.samples.iter().filter(|sample| has(sample, "handler")) {
        assert!(has(sample, "interrupted") && has(sample, "main"), "{:?}", sample.stack);
    }
}

#[test]
fn a_library_that_is_opened_later_is_followed() {
    let plugin = compile(&[C, &["-shared", "-fPIC"]].concat(), "plugin.c", "plugin.so");
    let opens = compile(&[C, &["-ldl"]].concat(), "opens.c", "opens");
    let running = Running::start("opens", &format!("{opens} {plugin}"));
    let profile = running.profile();
    complete("dlopen", &profile, 99.5);
    assert!(share(&profile, "plugin_work") > 90.0);
    assert!(share(&profile, "main") > 90.0);
}

#[test]
fn a_stripped_static_binary_is_complete() {
    let program = compile(&["gcc", "-O2", "-fomit-frame-pointer", "-static", "-s"], "signals.c", "static");
    complete("static, stripped", &Running::start("static", &program).profile(), 99.5);
}

/// musl's libc has no unwind information, and every program that uses it starts, ends and allocates in it.
#[test]
fn programs_of_musl_are_complete() {
    let how = ["musl-gcc", "-O2", "-fomit-frame-pointer"];
    for (name, more) in
        [("musl", &["-g1"][..]), ("static musl", &["-static", "-g1"]), ("stripped musl", &["-static", "-s"])]
    {
        let program = compile(&[&how, more].concat(), "musl.c", "musl");
        let profile = Running::start("musl", &program).profile();
        complete(name, &profile, 99.5);
        if name == "stripped musl" {
            continue;
        }
        // The stack leads through libc, which calls back into the program.
        for function in ["compare", "handler"] {
            assert!(share(&profile, function) > 2.0, "{name}: no sample in {function}");
            for sample in profile.samples.iter().filter(|sample| has(sample, function)) {
                assert!(has(sample, "sorts") && has(sample, "main"), "{name}: {:?}", sample.stack);
            }
        }
    }
}

#[test]
fn a_rust_program_is_complete() {
    let how = ["rustc", "-O", "-C", "force-frame-pointers=no", "--edition", "2024"];
    let profile = Running::start("rust", &compile(&how, "deep.rs", "deep-rust")).profile_for_shares();
    complete("Rust", &profile, 99.5);
    assert!(share(&profile, "deep::main") > 99.0);
    leaves_have_their_shares("Rust", &profile);
}

/// The output of `go tool pprof` for a profile.
fn go_tool_pprof(profile: &Profile, options: &[&str]) -> String {
    let file = folder().join("go.pb.gz");
    let out = std::fs::File::create(&file).expect("a file for the profile");
    Format::Pprof.write(profile, out).expect("write the profile");
    let run = Command::new("go").args(["tool", "pprof"]).args(options).arg(&file).output();
    let run = run.expect("run go: apt-get install golang-go");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    String::from_utf8_lossy(&run.stdout).into_owned()
}

#[test]
fn a_go_program_is_complete_and_has_its_inlined_functions_even_when_stripped() {
    for (name, flags) in [("Go", "-ldflags="), ("Go, stripped", "-ldflags=-s -w")] {
        let program = compile(&["go", "build", flags], "deep.go", "deep-go");
        let profile = Running::start("go", &program).profile();
        complete(name, &profile, 99.5);
        assert!(share(&profile, "main.below") > 50.0, "{name}: functions without names");
        // Known from the source: main.mixed is inlined into main.work, at its line 15.
        let inlined = profile.samples.iter().flat_map(|sample| sample.stack.windows(2)).any(|frames| {
            let is = |frame: &Frame, name, line| {
                let source = frame.source.as_ref().map(|source| source.1);
                (frame.function.as_deref(), source) == (Some(name), Some(line))
            };
            frames[0].inlined && is(&frames[0], "main.mixed", 8) && is(&frames[1], "main.work", 15)
        });
        assert!(inlined, "{name}: no main.mixed inlined into main.work");
        let peek = go_tool_pprof(&profile, &["-peek", "main.mixed"]);
        assert!(peek.contains("main.work (inline)") && peek.contains("| main.mixed"), "{name}: {peek}");
    }
}

#[test]
fn a_stack_is_followed_to_127_frames_and_a_deeper_one_is_marked() {
    let program = compile(
        &["gcc", "-O1", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-g1"],
        "abyss.c",
        "abyss",
    );
    // Above `burn`: 1 + depth of `descend`, main, and two or three of libc and _start.
    complete("120 frames", &Running::start("abyss", &format!("{program} 115")).profile(), 99.5);
    let profile = Running::start("abyss", &format!("{program} 200")).profile();
    let (user, whole) = profile.complete();
    let deep: u64 = profile.quality.iter().filter_map(|quality| quality.incomplete.get("too_deep")).sum();
    // While it descends or returns, it is briefly less deep.
    assert!(
        whole * 100 <= user && deep * 100 >= user * 99,
        "{whole} of {user} whole, {deep} too deep: {:?}",
        profile.quality
    );
    let is_marked = |sample: &Sample| {
        let last = sample.stack.last().and_then(|frame| frame.function.as_deref());
        last == Some("[unwind: deeper than 127 frames]")
            && sample
                .stack
                .iter()
                .filter(|frame| frame.function.as_deref().is_some_and(|name| name.starts_with("descend")))
                .count()
                > 120
    };
    assert!(profile.samples.iter().any(is_marked), "{:?}", profile.samples.first());
}

#[test]
fn many_threads_are_complete() {
    let profile = Running::start("threads", &compile(CXX, "threads.cc", "threads")).profile_for_shares();
    complete("threads", &profile, 99.5);
    assert!(share(&profile, "clone") > 99.0);
    leaves_have_their_shares("threads", &profile);
}

#[test]
fn a_shell_that_forks_without_end_is_complete() {
    let profile = Running::start("forks", "sh -c 'while :; do (:); /bin/true; done'").profile();
    // A few samples are during exec or exit.
    complete("fork and exec", &profile, 99.0);
}
