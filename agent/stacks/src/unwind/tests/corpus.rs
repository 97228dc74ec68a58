//! Compares the stacks of many small programs with framehop's: the same sources by several compilers and flags, and programs of
//! the distribution.

use std::path::Path;

use super::framehop::{StackComparison, compare, compile_as};

/// How often each program is stopped.
const STOPS: usize = 60;
/// Programs at least; one whose compiler is not there is left out.
const MIN_PROGRAMS: usize = 40;

const C: [&str; 3] = ["gcc", "-g1", "-pthread"];
const CXX: [&str; 3] = ["g++", "-g1", "-pthread"];
const RUST: [&str; 4] = ["rustc", "-g", "--edition", "2024"];
const GO: [&str; 2] = ["go", "build"];

/// Groups of flags: one program for each.
type FlagGroups = &'static [&'static [&'static str]];

/// Sources, their compilers, and the flags.
const SOURCES: [(&str, &[&str], FlagGroups); 6] = [
    (
        "deep.cc",
        &CXX,
        &[
            &["-O0"],
            &["-O1"],
            &["-O2"],
            &["-O3"],
            &["-Os"],
            &["-O2", "-fno-omit-frame-pointer"],
            &["-O2", "-fcf-protection=none", "-mno-red-zone"],
            &["-O2", "-flto"],
            &["-O2", "-static"],
            &["-O2", "-static-pie", "-fPIE"],
        ],
    ),
    ("threads.cc", &CXX, &[&["-O0"], &["-O2"], &["-O3"], &["-Os"]]),
    ("signals.c", &C, &[&["-O0"], &["-O2"], &["-Os"], &["-O2", "-flto"]]),
    (
        "undescribed.c",
        &C,
        &[
            &["-O0"],
            &["-O1"],
            &["-O2"],
            &["-Os"],
            &["-O2", "-no-pie"],
            &["-O2", "-static", "-no-pie"],
            &["-O1", "-fno-omit-frame-pointer"],
        ],
    ),
    (
        "deep.rs",
        &RUST,
        &[
            &["-O"],
            &["-C", "opt-level=0"],
            &["-C", "opt-level=s"],
            &["-O", "-C", "panic=abort"],
            &["-O", "-C", "lto=fat"],
            &["-O", "-C", "force-frame-pointers=yes"],
        ],
    ),
    ("deep.go", &GO, &[&[], &["-gcflags=-N -l"], &["-buildmode=pie"], &["-ldflags=-compressdwarf=false"]]),
];

const PYTHON: &str =
    "def f(n):\n    return sum(i * i for i in range(500)) if n == 0 else f(n - 1) + 1\nwhile True: f(20)";
const PERL: &str = "sub f { my $n = shift; $n < 2 ? $n : f($n - 1) + f($n - 2) } f(24) while 1";
const SHELL: &str = "f() { i=0; while [ $i -lt 1000 ]; do i=$((i + 1)); done; }; while :; do f; done";

/// Programs that run from code made at run time, and the same ones without it.
const LUA: &str = "local function price(n) local x = 1 for i = 1, n do x = (x * 69069 + i) % 4294967291 end return x end\n\
     local function handle(n) return price(n) + 1 end\nlocal s = 0 while true do s = (s + handle(20000)) % 1000 end";
const NODE: &str = "function price(n) { let x = 1; for (let i = 0; i < n; i++) x = (x * 69069 + i) % 4294967291; return x; }\n\
     function handle(n) { return [n, n + 1].map(price).concat(JSON.parse('[1,2,3]')).sort().join().length; }\n\
     let s = 0; for (;;) s += handle(2000);";

/// Programs of the distribution.
const INSTALLED: [&[&str]; 14] = [
    &["/usr/bin/python3", "-c", PYTHON],
    &["/usr/bin/perl", "-e", PERL],
    &["/bin/bash", "-c", SHELL],
    &["/bin/sh", "-c", SHELL],
    &["/usr/bin/awk", "BEGIN { while (1) for (i = 0; i < 1000; i++) s = s + sin(i) }"],
    &["/usr/bin/openssl", "speed", "-seconds", "60", "rsa2048"],
    &["/usr/bin/xz", "-9", "-T1", "-c", "/dev/zero"],
    &["/bin/gzip", "-9", "-c", "/dev/zero"],
    &["/usr/bin/sha512sum", "/dev/zero"],
    &["/usr/bin/luajit", "-e", LUA],
    &["/usr/bin/luajit", "-joff", "-e", LUA],
    &["/usr/bin/node", "-e", NODE],
    &["/usr/bin/node", "--jitless", "-e", NODE],
    &["/usr/bin/node", "--use-largepages=on", "-e", NODE],
];

/// Adds the stacks of a program.
fn add(all: &mut StackComparison, name: &str, program: &[&str]) {
    let one = compare(name, program, STOPS);
    assert!(one.stops >= STOPS / 2, "{name}: only {} stops", one.stops);
    all.stops += one.stops;
    all.same += one.same;
    all.worse += one.worse;
    all.longer += one.longer;
    all.made_at_run_time += one.made_at_run_time;
    all.as_frame_pointers += one.as_frame_pointers;
    all.lost_alike += one.lost_alike;
}

#[test]
#[ignore = "needs root, g++, go, python3, openssl, xz, luajit and nodejs: cargo xtask setup test"]
fn stacks_of_forty_programs_agree_with_framehop() {
    let folder = tempfile::tempdir().unwrap();
    let (mut all, mut programs) = (StackComparison::default(), 0);
    for (source, compiler, groups) in SOURCES {
        for (number, flags) in groups.iter().enumerate() {
            let name = format!("{number}-{source}");
            let program = compile_as(folder.path(), &[compiler, *flags].concat(), source, &name);
            add(&mut all, &format!("{source} {}", flags.join(" ")), &[&program]);
            programs += 1;
        }
    }
    for program in INSTALLED.iter().filter(|program| Path::new(program[0]).exists()) {
        add(&mut all, program[0], program);
        programs += 1;
    }
    eprintln!("{programs} programs: {all:?}");
    assert!(programs >= MIN_PROGRAMS, "{programs} programs");
    assert!(all.worse * 1000 <= all.stops * 5, "{all:?}");
    let right = all.same + all.longer + all.made_at_run_time + all.as_frame_pointers + all.lost_alike;
    assert!(right * 1000 >= all.stops * 995, "{all:?}");
}
