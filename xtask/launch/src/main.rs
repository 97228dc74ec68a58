//! What `cargo xtask` runs: compiles xtask and becomes it.
//!
//! xtask's dependencies take most of a minute to compile. This program has none: it runs seconds after a fresh clone,
//! and announces a first demo before anything long begins.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};
use std::time::{SystemTime, UNIX_EPOCH};

/// The CPU time of a first demo's compilers, measured on two cores at 3 GHz.
const COMPILE_CPU_MINUTES: usize = 12;

/// Unix time in seconds, for the elapsed time in the demo's steps; read by xtask/src/demo.rs.
const STARTED: &str = "PODOPSY_DEMO_STARTED";

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let is_help = arguments.iter().any(|argument| argument == "--help" || argument == "-h");
    let is_demo = arguments.first().is_some_and(|first| first == "demo") && !is_help;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.arg("run");
    if is_demo {
        announce_demo();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        cargo.env(STARTED, now.as_secs().to_string());
    } else {
        cargo.arg("--quiet");
    }
    cargo.args(["--package", "xtask", "--"]).args(&arguments);
    // Only a failure returns.
    let error = cargo.exec();
    eprintln!("xtask: cannot start {}: {error}", cargo.get_program().display());
    ExitCode::FAILURE
}

/// Writes what a demo does and how long it takes.
fn announce_demo() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Cargo compiles in parallel up to a few cores: long chains of crates wait for each other.
    let minutes = COMPILE_CPU_MINUTES.div_ceil(cores.min(4)) + 1;
    eprintln!(
        "The podopsy demo starts two misbehaving pods on this machine, in a containerd of its own, and shows what podopsy\n\
         records of them: failed DNS lookups, OOM kills and a CPU profile. It needs root. Five steps:\n\
         \x20 1. compile xtask, the tool that runs the demo\n\
         \x20 2. install containerd, runc and the CNI plugins, if they are missing\n\
         \x20 3. compile the two misbehaving programs\n\
         \x20 4. compile podopsy\n\
         \x20 5. run the pods and record them (about 2 minutes)\n\
         The first run compiles for about {minutes} minutes on {cores} cores; later runs skip that.\n\n\
         ==> step 1 of 5: compile xtask (about 30 s the first time)"
    );
}
