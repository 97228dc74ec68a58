//! Programs of tests/victims/native, compiled by a test and run in a cgroup of their own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use podopsy_model::profile::{Profile, Sample, Sampling};
use podopsy_pods::Pods;
use podopsy_recorder::cpu::{self, ProfileOptions, Scope};
use tokio::sync::Notify;

use super::{MemoryCgroup, no_runtime, require_root};

/// A running program; dropping this ends it and removes its cgroup.
pub struct Running {
    pub cgroup: MemoryCgroup,
    pub child: Child,
}

impl Running {
    pub fn start(name: &str, program: &str) -> Running {
        require_root();
        let cgroup = MemoryCgroup::new(name, 1 << 30);
        let mut command = cgroup.command(program);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start the program");
        std::thread::sleep(Duration::from_millis(300));
        Running { cgroup, child }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The program may have forked: every process in the cgroup belongs to it.
        for _ in 0..100 {
            let pids = std::fs::read_to_string(self.cgroup.path.join("cgroup.procs")).unwrap_or_default();
            let pids: Vec<i32> = pids.lines().filter_map(|pid| pid.parse().ok()).collect();
            if pids.is_empty() {
                break;
            }
            for pid in pids {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
            let _ = self.child.try_wait();
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.wait();
    }
}

/// Takes a profile for a time, or until it has `enough` samples.
pub fn take_profile(
    scope: Scope,
    duration: Duration,
    sampling: Sampling,
    unwind: bool,
    enough: u64,
) -> Profile {
    let runtime = tokio::runtime::Runtime::new().expect("a tokio runtime");
    let profile = runtime.block_on(async {
        let pods = Pods::start(no_runtime()).await?;
        let node = "test-node".to_owned();
        let options = ProfileOptions { scope, duration, sampling, unwind, node, helpers: super::helpers() };
        let has_enough = Notify::new();
        let progress = |samples| {
            if samples >= enough {
                has_enough.notify_one();
            }
        };
        cpu::profile(options, pods, has_enough.notified(), progress).await
    });
    profile.unwrap_or_else(|error| panic!("take a profile: {error:#}"))
}

/// The folder of the compiled programs.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<tempfile::TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder")).path()
}

/// Compiles a source of tests/victims/native; `how` is the compiler with its options.
pub fn compile(how: &[&str], source: &str, output: &str) -> String {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("victims/native");
    let output: PathBuf = folder().join(output);
    let mut command = Command::new(how[0]);
    command.args(&how[1..]).arg("-o").arg(&output).arg(sources.join(source));
    command.env("GOCACHE", folder().join("go-cache")).env("GOFLAGS", "-mod=mod");
    let done = command.output().unwrap_or_else(|error| panic!("run {}: {error}", how[0]));
    assert!(done.status.success(), "{how:?} {source}: {}", String::from_utf8_lossy(&done.stderr));
    output.to_string_lossy().into_owned()
}

/// Whether a function with such a name is in the stack.
pub fn has(sample: &Sample, function: &str) -> bool {
    sample.stack.iter().any(|frame| frame.function.as_deref().is_some_and(|name| name.contains(function)))
}
