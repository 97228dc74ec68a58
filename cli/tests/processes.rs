//! `net`, `enter` and `core` from outside, on processes of the test's own.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const PODOPSY: &str = env!("CARGO_BIN_EXE_podopsy");
const LIMIT: Duration = Duration::from_secs(30);

/// A process that is ended with its test. It prints a line when it is ready.
struct Target(Child);

impl Target {
    fn start(command: &[&str]) -> Target {
        let [program, arguments @ ..] = command else { panic!("no program") };
        let mut child = Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "{command:?}");
        Target(child)
    }

    fn name(&self) -> String {
        format!("pid:{}", self.0.id())
    }

    fn status(&self, key: &str) -> String {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap().trim().to_owned()
    }

    fn is_undisturbed(&self) -> bool {
        self.status("TracerPid") == "0" && !self.status("State").contains("stop")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn podopsy(args: &[&str]) -> Command {
    let mut command = Command::new(PODOPSY);
    command.args(args).env("RUST_BACKTRACE", "1").env_remove("NODE_NAME").env_remove("PODOPSY_CRI_SOCKET");
    command
}

/// Exit code, stdout, and stderr without the warning that there is no container runtime.
fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = podopsy(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let stderr = text(stderr);
    let lines = stderr.lines().filter(|line| !line.starts_with("podopsy: warning: name pods"));
    (status.code(), text(stdout), lines.map(|line| format!("{line}\n")).collect())
}

#[test]
#[ignore = "needs root and iproute2"]
fn enter_runs_a_tool_of_the_host_in_the_network_namespace() {
    let script = "ip link set lo up; ip addr add 10.66.0.1/32 dev lo; echo ready; exec sleep 600";
    let target = Target::start(&["unshare", "--net", "sh", "-c", script]);
    let (code, inside, error) = run(&["enter", &target.name(), "--", "ip", "-o", "addr"]);
    assert_eq!(code, Some(0), "{error}");
    let pid = target.0.id().to_string();
    let nsenter = Command::new("nsenter").args(["-t", &pid, "-n", "ip", "-o", "addr"]).output().unwrap();
    assert_eq!(inside.as_bytes(), nsenter.stdout);
    assert!(inside.contains("10.66.0.1/32") && !inside.contains("eth0"), "{inside}");
}

#[test]
#[ignore = "needs root"]
fn enter_takes_other_namespaces_and_hands_on_the_exit_code() {
    let script =
        "hostname inner; mount -t tmpfs none /mnt; echo hidden > /mnt/file; echo ready; exec sleep 600";
    let target = Target::start(&["unshare", "--uts", "--mount", "--ipc", "sh", "-c", script]);
    let name = target.name();
    let enter =
        |namespaces: &str, script: &str| run(&["enter", &name, "--ns", namespaces, "--", "sh", "-c", script]);
    assert_eq!(enter("uts", "hostname").1, "inner\n");
    assert_eq!(enter("mnt,uts", "hostname; cat /mnt/file").1, "inner\nhidden\n");
    assert_eq!(enter("uts,net", "exit 7").0, Some(7));
    assert_eq!(enter("net", "kill -TERM $$").0, Some(143));
    let (code, _, error) = run(&["enter", &name, "--", "/no/such/tool\x1b[2J"]);
    assert_eq!((code, error.lines().count(), error.contains('\x1b')), (Some(127), 1, false), "{error}");
    let (code, _, error) = run(&["enter", "pid:4194304", "--", "true"]);
    assert_eq!((code, error.lines().count()), (Some(1), 1), "{error}");
}

#[test]
#[ignore = "needs root"]
fn enter_reaches_a_pid_namespace() {
    let target = Target::start(&["unshare", "--pid", "--fork", "sh", "-c", "echo ready; exec sleep 600"]);
    let pid = target.0.id();
    let child = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let (code, inside, error) =
        run(&["enter", &format!("pid:{}", child.trim()), "--ns", "pid", "--", "sh", "-c", "echo $$"]);
    assert_eq!(code, Some(0), "{error}");
    let inside: u32 = inside.trim().parse().unwrap();
    assert!((2..100).contains(&inside), "{inside} is a number of the inner namespace");
    kill(Pid::from_raw(child.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
}

/// A listener in namespaces of its own, with a hostile name and a FIFO in place of resolv.conf.
const HOSTILE: &str = r#"
import socket, subprocess, sys, time
subprocess.run("ip link set lo up; ip link set lo name 'x<b>' 2>/dev/null; rm -f /run/podopsy-fifo; mkdir -p /run; mkfifo /run/podopsy-fifo; mount --bind /run/podopsy-fifo /etc/resolv.conf; rm /run/podopsy-fifo", shell=True)
s = socket.socket(); s.bind(("127.0.0.1", 8080)); s.listen(5)
open("/proc/self/comm", "wb").write(b"\x1b[2J\n<b>\xe2\x80\xae")
print("ready", flush=True)
time.sleep(600)
"#;

#[test]
#[ignore = "needs root, iproute2 and python3"]
fn net_escapes_a_hostile_process_and_does_not_wait_for_its_files() {
    let target = Target::start(&["unshare", "--net", "--mount", "python3", "-c", HOSTILE]);
    let begin = Instant::now();
    let (code, text, error) = run(&["net", &target.name()]);
    assert_eq!(code, Some(0), "{error}");
    assert!(begin.elapsed() < LIMIT);
    assert!(!text.contains('\x1b') && !text.contains('\u{202e}'), "{text}");
    assert!(text.contains("127.0.0.1:8080") && text.contains("\\x1b[2J\\x0a"), "{text}");
    assert!(text.contains("not read: it is not a regular file"), "{text}");
    let (code, json, _) = run(&["net", &target.name(), "-o", "json"]);
    assert_eq!(code, Some(0));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["sockets"][0]["local"], "127.0.0.1:8080");
    assert_eq!(json["sockets"][0]["processes"][0]["pid"], target.0.id());
    assert_eq!(json["host_network"], false);
}

/// Where a core always finds space: the disk of a machine that builds may be nearly full.
fn folder_in_memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

#[test]
#[ignore = "needs root"]
fn a_core_is_written_compressed_for_its_owner_alone_and_the_process_goes_on() {
    let target = Target::start(&["sh", "-c", "echo ready; exec sleep 600"]);
    let folder = folder_in_memory();
    let path = folder.path().join("core.zst");
    let (code, out, error) = run(&["core", &target.name(), "-w", path.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (Some(0), ""), "{error}");
    for part in ["passwords and keys", "the process was paused for", "1 thread", "gdb"] {
        assert!(error.contains(part), "{part} is not in:\n{error}");
    }
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    let mut core = Vec::new();
    zstd::Decoder::new(fs::File::open(&path).unwrap()).unwrap().read_to_end(&mut core).unwrap();
    assert_eq!((&core[..4], core[16]), (&b"\x7fELF"[..], 4));
    let arguments = b"sleep\x00600\x00";
    assert!(core.windows(arguments.len()).any(|window| window == arguments));
    assert!(target.is_undisturbed());
}

#[test]
#[ignore = "needs root and python3"]
fn ctrl_c_lets_the_process_go_on_and_leaves_no_file() {
    let program = "import os,time; x=os.urandom(1<<26)*6; print('ready',flush=True); time.sleep(600)";
    let target = Target::start(&["python3", "-c", program]);
    let folder = folder_in_memory();
    let path = folder.path().join("core.zst");
    let mut core = podopsy(&["core", &target.name(), "--stream", "-w", path.to_str().unwrap()]);
    let core = core.stderr(Stdio::piped()).spawn().unwrap();
    let begin = Instant::now();
    while target.status("TracerPid") == "0" {
        assert!(begin.elapsed() < LIMIT, "it was never stopped");
        sleep(Duration::from_millis(1));
    }
    kill(Pid::from_raw(core.id() as i32), Signal::SIGINT).unwrap();
    let output = core.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("the process goes on, and nothing was written"), "{error}");
    assert!(target.is_undisturbed());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
#[ignore = "needs root"]
fn what_cannot_be_a_core_is_refused_before_the_process_is_stopped() {
    let target = Target::start(&["sh", "-c", "echo ready; exec sleep 600"]);
    let folder = folder_in_memory();
    let link = folder.path().join("link.zst");
    std::os::unix::fs::symlink("/dev/null", &link).unwrap();
    let refused = |name: &str, path: &str| {
        let (code, _, error) = run(&["core", name, "-w", path]);
        assert_eq!(error.lines().count(), 1, "{error}");
        code
    };
    assert_eq!(refused(&target.name(), link.to_str().unwrap()), Some(2));
    assert_eq!(refused(&target.name(), "/no/such/folder/core"), Some(3));
    assert_eq!(refused("pid:4194304", "/dev/shm/podopsy-test-core"), Some(1));
    // A kernel thread has no memory.
    assert_eq!(refused("pid:2", folder.path().join("core").to_str().unwrap()), Some(1));
}
