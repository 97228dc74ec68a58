//! A victim that was dying before the OOM killer chose it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podopsy_model::{Detail, Event, EventKind, OomKill};
use podopsy_recorder::RecorderOptions;
use podopsy_recorder::sigkill::SigkillScope;
use support::{MemoryCgroup, Recording, no_runtime, options};

const MIB: u64 = 1 << 20;
const SOON: Duration = Duration::from_secs(60);

/// The freezer of cgroup v1, which delays even a SIGKILL. It can be mounted beside cgroup v2.
struct Freezer {
    path: PathBuf,
    /// The mount point, if this test mounted it.
    mounted: Option<tempfile::TempDir>,
}

impl Freezer {
    fn new() -> Freezer {
        let (root, mounted) = match mounted_freezer() {
            Some(root) => (root, None),
            None => {
                let folder = tempfile::tempdir().expect("a folder");
                mount(Some("freezer"), folder.path(), Some("cgroup"), MsFlags::empty(), Some("freezer"))
                    .expect("mount the freezer of cgroup v1 (CONFIG_CGROUP_FREEZER)");
                (folder.path().to_owned(), Some(folder))
            }
        };
        let path = root.join(format!("podopsy-test-dying-{}", std::process::id()));
        fs::create_dir(&path).expect("make a cgroup of the freezer");
        Freezer { path, mounted }
    }

    fn freeze(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).expect("move it into the freezer");
        fs::write(self.path.join("freezer.state"), "FROZEN").expect("freeze it");
        let begin = Instant::now();
        while fs::read_to_string(self.path.join("freezer.state")).expect("its state").trim() != "FROZEN" {
            assert!(begin.elapsed() < SOON, "it was to freeze");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.path.join("freezer.state"), "THAWED");
        for _ in 0..100 {
            if fs::remove_dir(&self.path).is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Some(folder) = &self.mounted {
            let _ = umount2(folder.path(), MntFlags::MNT_DETACH);
        }
    }
}

/// Where the freezer is mounted, if it is.
fn mounted_freezer() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc/self/mounts");
    let freezer = |line: &&str| {
        let fields: Vec<&str> = line.split(' ').collect();
        fields[2] == "cgroup" && fields[3].split(',').any(|option| option == "freezer")
    };
    Some(PathBuf::from(mounts.lines().find(freezer)?.split(' ').nth(1)?))
}

fn kill_of(events: &[Event], pid: u32) -> Option<&OomKill> {
    events.iter().filter(|event| event.kind == EventKind::OomKill).find_map(|event| match &event.detail {
        Detail::Oom(kill) if kill.victim.pid == pid => Some(kill),
        _ => None,
    })
}

#[test]
fn a_victim_that_was_dying_already_is_marked() {
    let cgroup = MemoryCgroup::new("dying", 64 * MIB);
    let freezer = Freezer::new();
    let options = RecorderOptions { dns: None, sigkill: SigkillScope::AllProcesses, ..options() };
    let mut recording = Recording::start(options, no_runtime());
    // It holds most of the limit, and its oom_score_adj makes it the victim. Frozen, it does not act on the SIGKILL.
    let hold = "/usr/bin/python3 -c 'import time; open(\"/proc/self/oom_score_adj\", \"w\").write(\"1000\"); \
                x = bytearray(40 << 20); print(\"ready\", flush=True); time.sleep(600)'";
    let mut victim = cgroup.command(hold).stdout(Stdio::piped()).spawn().expect("start the victim");
    let pid = victim.id();
    let mut line = String::new();
    BufReader::new(victim.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it speaks");
    assert_eq!(line.trim(), "ready");
    freezer.freeze(pid);
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).expect("kill it");
    assert!(victim.try_wait().expect("look at it").is_none(), "the freezer was to hold it");
    // Another process needs more than is left. The OOM killer chooses the largest, and finds that it is dying.
    let want = "/usr/bin/python3 -c 'x = bytearray(40 << 20)'";
    // It may be killed as well: the victim ends shortly before its memory is freed.
    cgroup.command(want).status().expect("run the trigger");
    assert!(!victim.wait().expect("it ends").success());

    let incident = |event: &Event| event.incident.as_ref().is_some_and(|one| one.victims[0].task.pid == pid);
    recording.until("incident", SOON, |seen| seen.iter().any(incident));
    let marked = kill_of(&recording.seen, pid).expect("the mark comes first");
    assert!(marked.already_dying, "{marked:?}");
    assert_ne!(marked.trigger.pid, pid);
    let report =
        recording.seen.iter().find(|event| incident(event)).and_then(|event| event.incident.as_ref());
    let report = report.expect("just found");
    assert_eq!((report.kernel_kills, report.victims[0].already_dying), (0, true));
    // The signal that did kill it is reported, too.
    let sent = |event: &Event| event.sigkill().is_some() && event.process.pid == pid;
    recording.until("SIGKILL", SOON, |seen| seen.iter().any(sent));
    let sender = recording.seen.iter().find(|event| sent(event)).and_then(Event::sigkill);
    let sender = sender.and_then(|sigkill| sigkill.sender.as_ref()).expect("a process sent it");
    assert_eq!(sender.process.pid, std::process::id());
    let (_, losses) = recording.stop();
    assert_eq!((losses.get("oom_unseen"), losses.get("oom_uncounted")), (None, None), "{losses:?}");
}
