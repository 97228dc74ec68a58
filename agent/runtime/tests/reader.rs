//! Runtime readers in their jail, and what becomes of those that are lost. Run as root: only then is the jail complete.
//!
//! The program is its own supervisor, so its `main` is not that of the usual test harness.

#[path = "support/fake_runtime.rs"]
mod fake_runtime;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use fake_runtime::{APP, PAUSE, UID, serve};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podopsy_runtime::{Answer, CallError, Question, ReaderOptions, RuntimeReader};

fn main() -> ExitCode {
    if let Some(code) = podopsy_runtime::run_if_asked() {
        return code;
    }
    let mut arguments = Arguments::from_args();
    // They look at the children of this process.
    arguments.test_threads = Some(1);
    let tests: &[(&str, fn())] = &[
        ("a_reader_holds_no_capability_and_no_network_and_no_file", a_reader_holds_few_rights),
        ("each_question_is_answered_by_the_runtime", each_question_is_answered),
        ("a_socket_in_the_nodes_root_is_found_and_shown_by_its_path", the_nodes_root_is_searched),
        ("a_reader_that_is_killed_is_replaced_and_counted", a_killed_reader_is_replaced),
        ("a_reader_that_hangs_is_replaced_within_its_time", a_hanging_reader_is_replaced),
        ("a_supervisor_that_is_killed_is_replaced", a_killed_supervisor_is_replaced),
        ("an_answer_over_the_bound_is_refused_with_a_reason", too_large_an_answer_is_refused),
        ("a_runtime_that_hangs_delays_one_question_by_its_timeout", a_hanging_runtime_delays_once),
        ("a_runtime_that_starts_later_or_again_is_found", a_runtime_that_starts_later_is_found),
        ("a_reader_costs_little_memory_and_little_time", a_reader_costs_little),
    ];
    let trial = |(name, run): &(&str, fn())| {
        let run = *run;
        Trial::test(*name, move || std::panic::catch_unwind(run).map_err(|_| Failed::without_message()))
    };
    libtest_mimic::run(&arguments, tests.iter().map(trial).collect()).exit_code()
}

const TIMEOUT: Duration = Duration::from_millis(500);

fn reader(socket: &Path, node_root: Option<&Path>) -> RuntimeReader {
    let options = ReaderOptions {
        program: "/proc/self/exe".into(),
        socket: Some(socket.to_owned()),
        node_root: node_root.map(Path::to_owned),
        timeout: TIMEOUT,
    };
    RuntimeReader::start(&options).unwrap()
}

/// Runs a test with a folder and the path of a socket in it.
fn with_a_folder<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test(folder.path().join("cri.sock")));
}

fn container() -> Question {
    Question::Container { id: APP.to_owned() }
}

/// Asks until the runtime answers, for as long as its back-off may last.
async fn answered(reader: &RuntimeReader) -> bool {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(5) {
        if reader.ask(container()).await.is_ok() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    false
}

fn status_field(pid: i32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    field.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The supervisors and readers below a process.
fn descendants(pid: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let children: Vec<i32> = lists
        .flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>())
        .collect();
    children.into_iter().flat_map(|child| std::iter::once(child).chain(descendants(child))).collect()
}

/// The readers, which are forked by supervisors, as the supervisor in reserve is: the reader alone has an epoll.
fn readers() -> Vec<i32> {
    let has_epoll = |pid: &i32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files
            .filter_map(|file| fs::read_link(file.path()).ok())
            .any(|link| link.ends_with("anon_inode:[eventpoll]"))
    };
    descendants(std::process::id() as i32).into_iter().filter(has_epoll).collect()
}

fn end(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

fn a_reader_holds_few_rights() {
    with_a_folder(async |socket| {
        let _runtime = serve(&socket);
        let root = format!("/proc/{}/root", std::process::id());
        let reader = reader(&socket, Some(Path::new(&root)));
        reader.ask(container()).await.unwrap();
        let all = descendants(std::process::id() as i32);
        assert!(all.len() >= 3 && readers().len() == 1, "a supervisor, its reserve, a reader: {all:?}");
        for pid in all {
            assert_eq!(
                (status_field(pid, "Seccomp:"), status_field(pid, "NoNewPrivs:")),
                ("2".into(), "1".into())
            );
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(status_field(pid, set), "0".repeat(16), "{set}");
            }
            let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
            let links = files.map(|file| fs::read_link(file.path()).unwrap().display().to_string());
            let expected = ["socket:[", "anon_inode:[", "/dev/null", "/"];
            let others: Vec<_> =
                links.filter(|link| !expected[..3].iter().any(|one| link.starts_with(one))).collect();
            assert_eq!(others, [expected[3]], "the node's root alone");
            if nix::unistd::geteuid().is_root() {
                let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
                assert_ne!(network(&pid.to_string()), network("self"));
            }
        }
        if nix::unistd::geteuid().is_root() {
            assert_eq!(reader.weaknesses(), [""; 0]);
        }
    });
}

fn each_question_is_answered() {
    with_a_folder(async |socket| {
        let _runtime = serve(&socket);
        let reader = reader(&socket, None);
        assert_eq!(reader.ask(Question::Connect).await, Ok(Answer::Connected));
        let status = reader.status();
        assert_eq!(status.version.as_deref(), Some("fake 1.0"));
        assert_eq!(status.socket.as_deref(), socket.to_str());
        assert_eq!((status.pid, reader.pid()), (Some(std::process::id()), Some(std::process::id())));
        let Ok(Answer::Container(report)) = reader.ask(container()).await else { panic!("no container") };
        assert_eq!(report.info.sandbox_id.as_deref(), Some(PAUSE));
        assert_eq!(report.status.unwrap().metadata.unwrap().name, "app");
        let Ok(Answer::Sandbox(report)) = reader.ask(Question::Sandbox { id: PAUSE.to_owned() }).await else {
            panic!("no sandbox")
        };
        assert_eq!(report.status.unwrap().metadata.unwrap().name, "pricing-7f9c");
        let Ok(Answer::Containers(list)) = reader.ask(Question::Containers { id: None }).await else {
            panic!("no containers")
        };
        assert_eq!(list.len(), 2);
        let of_pod = Question::Sandboxes { pod_uid: Some(UID.to_owned()) };
        let Ok(Answer::Sandboxes(list)) = reader.ask(of_pod).await else { panic!("no sandboxes") };
        assert_eq!(list.len(), 1);
        let unknown = Question::Container { id: "unknown".to_owned() };
        assert_eq!(reader.ask(unknown).await, Err(CallError::NotFound));
        assert_eq!((reader.status().errors, reader.lost()), (0, 0));
    });
}

fn the_nodes_root_is_searched() {
    with_a_folder(async |socket| {
        let _runtime = serve(&socket);
        let root = socket.parent().unwrap();
        let reader = reader(Path::new("/cri.sock"), Some(root));
        reader.ask(container()).await.unwrap();
        assert_eq!(reader.status().socket.as_deref(), socket.to_str());
    });
}

fn a_killed_reader_is_replaced() {
    with_a_folder(async |socket| {
        let _runtime = serve(&socket);
        let reader = reader(&socket, None);
        for round in 1..=5 {
            reader.ask(container()).await.unwrap();
            let running = readers();
            assert_eq!(running.len(), 1);
            end(running[0]);
            // Asked at once, and after the loss was noticed.
            if round % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            reader.ask(container()).await.unwrap();
            assert_eq!(reader.lost(), round);
        }
        assert_eq!(reader.status().errors, 0, "each question was answered");
    });
}

fn a_hanging_reader_is_replaced() {
    with_a_folder(async |socket| {
        let _runtime = serve(&socket);
        let reader = reader(&socket, None);
        reader.ask(container()).await.unwrap();
        let begin = Instant::now();
        let late = reader.ask(Question::Hang).await;
        assert_eq!(late, Err(CallError::Down("the runtime reader does not answer".to_owned())));
        let limit = TIMEOUT * 3 + Duration::from_secs(1);
        assert!(begin.elapsed() < limit + Duration::from_millis(500), "{:?}", begin.elapsed());
        assert_eq!((reader.lost(), reader.status().errors), (1, 1));
        assert!(answered(&reader).await);
        assert_eq!((readers().len(), reader.status().error), (1, None));
    });
}

fn a_killed_supervisor_is_replaced() {
    with_a_folder(async |socket| {
        let _runtime = serve(&socket);
        let reader = reader(&socket, None);
        for _ in 0..3 {
            reader.ask(container()).await.unwrap();
            let own = std::process::id().to_string();
            for pid in descendants(std::process::id() as i32) {
                if status_field(pid, "PPid:") == own {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
            for pid in readers() {
                end(pid);
            }
            assert!(answered(&reader).await);
        }
    });
}

fn too_large_an_answer_is_refused() {
    with_a_folder(async |socket| {
        let _runtime = serve(&socket);
        let reader = reader(&socket, None);
        let Err(CallError::Refused(why)) = reader.ask(Question::TooMuch).await else {
            panic!("it was answered")
        };
        assert!(
            why.starts_with("an answer of ") && why.ends_with(" exceeds the limit of 16777216 bytes"),
            "{why}"
        );
        reader.ask(container()).await.unwrap();
        assert_eq!(reader.lost(), 0);
    });
}

fn a_hanging_runtime_delays_once() {
    with_a_folder(async |socket| {
        let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let reader = reader(&socket, None);
        let begin = Instant::now();
        let Err(CallError::Down(why)) = reader.ask(container()).await else { panic!("it was answered") };
        assert!(why.contains("no answer in 500ms"), "{why}");
        assert!(begin.elapsed() >= TIMEOUT && begin.elapsed() < TIMEOUT * 2, "{:?}", begin.elapsed());
        assert!(!reader.is_ready());
        let begin = Instant::now();
        assert_eq!(reader.ask(container()).await, Err(CallError::Down(why)));
        assert!(begin.elapsed() < Duration::from_millis(50), "{:?}", begin.elapsed());
        assert_eq!((reader.lost(), reader.status().errors), (0, 1));
    });
}

fn a_runtime_that_starts_later_is_found() {
    with_a_folder(async |socket| {
        let reader = reader(&socket, None);
        assert!(matches!(reader.ask(container()).await, Err(CallError::Down(_))));
        let first =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        first.spawn({
            let socket = socket.clone();
            async move { drop(serve(&socket)) }
        });
        assert!(answered(&reader).await);
        first.shutdown_background();
        fs::remove_file(&socket).unwrap();
        assert!(matches!(reader.ask(container()).await, Err(CallError::Down(_))));
        let second = serve(&socket);
        assert!(answered(&reader).await);
        assert!(second.calls.load(Relaxed) > 0 && reader.lost() == 0);
    });
}

fn a_reader_costs_little() {
    with_a_folder(async |socket| {
        let _runtime = serve(&socket);
        let reader = reader(&socket, None);
        reader.ask(container()).await.unwrap();
        let begin = Instant::now();
        for _ in 0..1000 {
            reader.ask(container()).await.unwrap();
        }
        let each = begin.elapsed() / 1000;
        // Pages that it shares with no other process.
        let own = |pid: i32| {
            let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
            let private = smaps.lines().filter(|line| line.starts_with("Private_Dirty:"));
            let kib = private.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
            kib.sum::<u64>()
        };
        let all = descendants(std::process::id() as i32);
        let memory: Vec<_> = all.iter().map(|pid| (status_field(*pid, "VmRSS:"), own(*pid))).collect();
        eprintln!("a question was answered in {each:?}; RSS and own KiB of the processes: {memory:?}");
        assert!(memory.iter().all(|(_, own)| *own < 4096), "{memory:?}");
    });
}
