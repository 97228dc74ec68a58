//! The binary from outside: help, usage errors, and errors about missing privileges.
#![forbid(unsafe_code)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};

const PODOPSY: &str = env!("CARGO_BIN_EXE_podopsy");
const COMMANDS: [&str; 5] = ["watch", "profile", "pods", "inspect", "doctor"];

fn podopsy(args: &[&str]) -> Command {
    let mut command = Command::new(PODOPSY);
    command.args(args).env("RUST_BACKTRACE", "1").env_remove("NODE_NAME").env_remove("PODOPSY_CRI_SOCKET");
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn assert_no_panic(output: &Output) {
    for stream in [&output.stdout, &output.stderr] {
        let text = text(stream);
        for word in ["panicked", "backtrace", "stack backtrace", "this is a bug"] {
            assert!(!text.contains(word), "{text}");
        }
    }
}

#[test]
fn help_has_each_command_the_target_syntax_and_the_exit_codes() {
    let output = podopsy(&["--help"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let help = text(&output.stdout);
    for word in
        COMMANDS.iter().chain(&["namespace/pod/container", "pid:N", "Exit codes", "Examples", "NODE_NAME"])
    {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
    for command in COMMANDS {
        let output = podopsy(&[command, "--help"]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(text(&output.stdout).contains("--cri-socket"), "{command}");
    }
}

#[test]
fn the_error_for_a_wrong_target_explains_the_syntax() {
    for args in [&["inspect", "a//b"][..], &["profile", "pid:x"], &["inspect", "a/b/c/d"]] {
        let output = podopsy(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let error = text(&output.stderr);
        assert!(error.contains("namespace/pod/container") && error.contains("pid:N"), "{error}");
        assert_no_panic(&output);
    }
}

#[test]
fn an_unknown_file_extension_is_refused_before_sampling() {
    let output = podopsy(&["profile", "-a", "-o", "profile.json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!([".pb.gz", ".folded", ".svg"].iter().all(|ending| error.contains(ending)), "{error}");
}

/// Needs the privileges to sample: the suite runs as root.
#[test]
fn a_link_is_refused_before_sampling_and_its_file_is_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let precious = dir.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    let link = dir.path().join("link.svg");
    std::os::unix::fs::symlink(&precious, &link).unwrap();
    let output = podopsy(&["profile", "-a", "-d", "1h", "-o", link.to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("symbolic link") && error.lines().count() == 1, "{error}");
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
}

#[test]
fn control_characters_in_arguments_are_escaped() {
    let output = podopsy(&["inspect", "a//\u{1b}[2J\u{9b}31m\u{202e}"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(!error.contains(['\u{1b}', '\u{9b}', '\u{202e}']), "{error:?}");
}

/// A copy of the binary that every user can run: the build folder may belong to root.
struct Public {
    _dir: tempfile::TempDir,
    binary: PathBuf,
}

impl Public {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in("/tmp")
            .unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let binary = dir.path().join("podopsy");
        // Copied by another process: a child that another test starts meanwhile would inherit our write descriptor, and a
        // file that is open for writing cannot be executed (ETXTBSY).
        let copied = Command::new("install").args(["-m", "755", PODOPSY]).arg(&binary).status().unwrap();
        assert!(copied.success(), "{copied}");
        Public { _dir: dir, binary }
    }

    /// Runs the binary as the unprivileged user 65534, or as the tests' own user if that is not root.
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(&self.binary);
        command.args(args).current_dir("/").env("RUST_BACKTRACE", "1");
        command.env_remove("PODOPSY_CRI_SOCKET").env_remove("NODE_NAME");
        if nix::unistd::geteuid().is_root() {
            command.uid(65534).gid(65534);
        }
        command.output().unwrap()
    }
}

#[test]
fn missing_privileges_are_a_one_line_error_of_each_command() {
    let public = Public::new();
    for args in [
        &["watch"][..],
        &["watch", "oom"],
        &["watch", "dns", "-o", "json"],
        &["profile", "-a", "-d", "1s"],
        &["profile", "finance/pricing", "-o", "/tmp/never.svg"],
        &["pods"],
        &["pods", "-o", "json"],
        &["inspect", "pid:1"],
        &["inspect", "finance/pricing"],
        &["net", "finance/pricing"],
        &["enter", "finance/pricing", "--", "true"],
        &["core", "pid:1", "-w", "/tmp/never.zst"],
        &["doctor"],
        &["doctor", "-o", "json"],
    ] {
        let output = public.run(args);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{args:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
        let start = format!("podopsy: {}", args[0]);
        assert!(error.starts_with(&start), "{args:?}: {error}");
        assert!(error.contains(" needs ") && error.contains("root"), "{args:?}: {error}");
        assert_no_panic(&output);
    }
}

#[test]
fn the_doctor_reports_without_privileges() {
    let public = Public::new();
    let output = public.run(&["doctor", "-o", "json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap();
    let bpf = checks.iter().find(|check| check["name"] == "CAP_BPF").unwrap();
    assert_eq!((&bpf["status"], &bpf["group"]), (&"missing".into(), &"capability".into()));
    assert!(bpf["mend"].as_str().unwrap().contains("BPF"));
    for check in checks.iter().filter(|check| check["status"] == "missing") {
        assert!(check["mend"].is_string() || check["group"] == "probe", "{check}");
    }
}

#[test]
fn output_to_a_pipe_has_no_colour() {
    let output = podopsy(&["doctor"]).env("TERM", "xterm-256color").output().unwrap();
    assert!(!output.stdout.contains(&0x1b));
    assert_no_panic(&output);
}

#[test]
fn a_closed_pipe_is_not_a_failure() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = podopsy(&["--help"]).stdout(writer.try_clone().unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_no_panic(&output);
    let child = podopsy(&["doctor"]).stdout(writer).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""));
}

/// A small profile in the format of profile.proto, as another program would write it, with one function.
fn pprof(function: &[u8]) -> Vec<u8> {
    // sample_type {1, 2}; texts "", cpu, nanoseconds, the function; function 1 is text 3; location 1 is function 1.
    let mut bytes = vec![0x0a, 4, 8, 1, 0x10, 2, 0x32, 0, 0x32, 3];
    bytes.extend(b"cpu");
    bytes.extend([0x32, 11]);
    bytes.extend(b"nanoseconds");
    bytes.extend([0x32, u8::try_from(function.len()).unwrap()]);
    bytes.extend(function);
    bytes.extend([0x2a, 4, 8, 1, 0x10, 3, 0x22, 6, 8, 1, 0x22, 2, 8, 1, 0x12, 5, 8, 1, 0x10, 0xe8, 7]);
    bytes
}

#[test]
fn two_profiles_are_compared_without_privileges() {
    let public = Public::new();
    let dir =
        tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o777)).tempdir_in("/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (before, after, empty) = (path("before"), path("after"), path("empty"));
    fs::write(&before, pprof(b"old")).unwrap();
    fs::write(&after, pprof(b"new\x1b[2J")).unwrap();
    let whole = pprof(b"none");
    fs::write(&empty, &whole[..whole.len() - 7]).unwrap();

    let (svg, folded) = (path("x.svg"), path("x.folded"));
    let output = public.run(&["profile", "diff", &before, &after, "-w", &svg, "-w", &folded]);
    let table = text(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(
        table.contains("+100.00 %") && table.contains("-100.00 %") && table.contains("new\\x1b[2J"),
        "{table}"
    );
    assert!(!table.contains('\x1b'));
    assert_eq!(fs::read_to_string(&folded).unwrap(), "new\\x1b[2J 0 1000\nold 1000 0\n");
    assert!(fs::read_to_string(&svg).unwrap().contains("<svg"));

    let output = public.run(&["profile", "diff", &before, &after, "--absolute", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["by"], &json["total"]["after"]), (&"value".into(), &1000.into()));
    let old = json["functions"].as_array().unwrap().iter().find(|f| f["function"] == "old").unwrap();
    assert_eq!((&old["self"]["before"], &old["self"]["after"]), (&1000.into(), &0.into()));

    for (args, code, word) in [
        (&["profile", "diff", &before, "/etc/passwd"][..], 3, "is not a pprof profile"),
        (&["profile", "diff", &before, "/nonexistent"], 3, "cannot open /nonexistent"),
        (&["profile", "diff", &empty, &after], 1, "no samples"),
        (
            &["profile", "diff", &before, &after, "--value", "heap"],
            3,
            "has no values of type heap; it has cpu",
        ),
        (&["profile", "diff", &before, &after, "-w", "x.pb.gz"], 2, ".folded or .svg"),
        (&["profile", "diff", &before], 2, "AFTER"),
    ] {
        let output = public.run(args);
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
        assert!(error.contains(word), "{args:?}: {error}");
        assert_no_panic(&output);
    }
}

#[test]
fn shells_get_completions_and_man_gets_a_page_for_each_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = podopsy(&["completion", shell]).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(text(&output.stdout).contains("podopsy"), "{shell}");
    }
    assert_eq!(podopsy(&["completion", "csh"]).output().unwrap().status.code(), Some(2));

    let folder = tempfile::tempdir().unwrap();
    let output = podopsy(&["man-pages", folder.path().to_str().unwrap()]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for page in ["podopsy.1", "podopsy-profile.1", "podopsy-oom-show.1"] {
        let page = fs::read_to_string(folder.path().join(page)).expect(page);
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
    }
    let nowhere = podopsy(&["man-pages", "/nonexistent/folder"]).output().unwrap();
    assert_eq!(nowhere.status.code(), Some(3));
    assert!(text(&nowhere.stderr).contains("/nonexistent/folder"), "{}", text(&nowhere.stderr));
}
