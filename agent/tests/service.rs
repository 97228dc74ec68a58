//! The agent's binary before it touches the kernel: the sources of settings, and the errors for wrong ones.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn agent(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podopsy-agent"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PODOPSY_") || name == "NODE_NAME" {
            command.env_remove(name);
        }
    }
    command.args(args);
    command
}

fn result(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn config(dir: &Path, text: &str) -> String {
    let path = dir.join("agent.toml");
    fs::write(&path, text).expect("write it");
    path.to_str().expect("a name").to_owned()
}

#[test]
fn print_config_shows_the_source_of_each_value() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = config(dir.path(), "store-bytes = \"1GiB\"\nstore-age = \"2h\"\ndns-timeout = \"3s\"\n");
    let mut command = agent(&["--print-config", "--store-age", "3h"]);
    command.env("PODOPSY_CONFIG", &file).env("PODOPSY_DNS_TIMEOUT", "4s").env("NODE_NAME", "n1");
    command.env("PODOPSY_DNS_PORT", "53,5353").env("PODOPSY_DNS_ANSWERS", "yes");
    let (code, out, error) = result(&command.output().expect("run it"));
    assert_eq!((code, error.as_str()), (Some(0), ""));
    for line in [
        &format!("store-bytes = \"1GiB\" # {file}:1"),
        "store-age = \"3h\" # a flag",
        "dns-timeout = \"4s\" # PODOPSY_DNS_TIMEOUT",
        "node = \"n1\" # NODE_NAME",
        "dns-port = [53, 5353] # PODOPSY_DNS_PORT",
        "dns-answers = yes # PODOPSY_DNS_ANSWERS",
        "growth = \"auto\" # default",
        "# listen is not set",
    ] {
        let line = line.replace("= yes", "= \"yes\"");
        assert!(out.lines().any(|shown| shown == line), "{line} is not in:\n{out}");
    }
    // The output is a configuration file with the same settings.
    let again = config(dir.path(), &out);
    let (code, second, error) =
        result(&agent(&["--print-config", "--config", &again]).output().expect("run it"));
    assert_eq!((code, error.as_str()), (Some(0), ""));
    let values = |text: &str| -> Vec<String> {
        text.lines().map(|line| line.rsplit_once(" # ").map_or(line, |(value, _)| value).to_owned()).collect()
    };
    assert_eq!(values(&second), values(&out));
}

#[test]
fn wrong_settings_end_the_start_before_anything_is_attached() {
    let dir = tempfile::tempdir().expect("a folder");
    let file = config(dir.path(), "node = \"a\"\nstore-byte = 1\n");
    let (code, out, error) = result(&agent(&["--config", &file]).output().expect("run it"));
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert_eq!(
        error,
        format!(
            "podopsy-agent: {file}:2: there is no setting store-byte; is store-bytes meant? \
             podopsy-agent --print-config lists them\n"
        )
    );
    let (code, _, error) = result(&agent(&["--store-bytes", "1MiB"]).output().expect("run it"));
    assert!(code == Some(2) && error.contains("between 4MiB and 64GiB"), "{error}");
    let (code, _, error) = result(&agent(&[]).env("PODOPSY_STORE_AGE", "24").output().expect("run it"));
    assert!(code == Some(2) && error.contains("no unit"), "{error}");
}

#[test]
fn a_wrong_export_ends_the_start_and_shows_no_password() {
    let dir = tempfile::tempdir().expect("a folder");
    let file =
        config(dir.path(), "loki-url = \"http://loki:3100\"\nloki-header = [\"Authorization=hunter2\"]\n");
    let (code, out, error) = result(&agent(&["--print-config", "--config", &file]).output().expect("run it"));
    assert_eq!((code, error.as_str()), (Some(0), ""));
    let lines = [
        format!("loki-url = \"http://loki:3100\" # {file}:1"),
        format!("# loki-header is set, and not shown # {file}:2"),
        "export-patience = \"10m\" # default".to_owned(),
        "# otlp-url is not set".to_owned(),
    ];
    for line in lines {
        assert!(out.lines().any(|shown| shown == line), "{line} is not in:\n{out}");
    }
    assert!(!out.contains("hunter2"), "{out}");

    let long = "--loki-header=Authorization: hunter2";
    for (args, expected) in [
        (vec!["--loki-url", "loki:3100"], "loki-url: \"loki:3100\" must begin with http:// or https://"),
        (vec!["--otlp-url", "https://ann:hunter2@c"], "otlp-url: a URL is logged"),
        (vec!["--loki-header", "X-Scope-OrgID=hunter2"], "loki-header is set, and loki-url is not"),
        (vec!["--loki-url", "http://l", long], "loki-header: use NAME=VALUE, or NAME=@FILE"),
        (
            vec!["--loki-url", "http://l", "--loki-header=A=@/nonexistent"],
            "header a: read /nonexistent: No such",
        ),
        (
            vec!["--otlp-url", "https://c", "--export-ca=/nonexistent"],
            "otlp_logs: read /nonexistent: No such",
        ),
        (vec!["--otlp-url", "https://c", "--export-ca", &file], "agent.toml has no PEM certificates"),
        (
            vec!["--otlp-url", "https://c", "--export-identity", &file],
            "agent.toml has no PEM certificate with",
        ),
        (vec!["--otlp-metrics-every", "60s"], "neither otlp-url nor otlp-metrics-url is"),
        (vec!["--export-queue-bytes", "1"], "between 64KiB and 1GiB"),
    ] {
        let (code, out, error) = result(&agent(&args).output().expect("run it"));
        assert_eq!((code, out.as_str()), (Some(2), ""), "{args:?}: {error}");
        assert!(error.contains(expected) && !error.contains("hunter2"), "{args:?}: {error}");
    }
    // A system without certificate authorities (an image from scratch) is an error only for https:// URLs.
    let (code, _, error) = result(
        &agent(&["--otlp-url", "https://c", "--node", "n"])
            .env("SSL_CERT_FILE", "/nonexistent")
            .env("SSL_CERT_DIR", "/nonexistent")
            .output()
            .expect("run it"),
    );
    assert!(code == Some(2) && error.contains("--export-ca"), "{code:?} {error}");
    let help = agent(&["--help"]).env("PODOPSY_LOKI_HEADER", "A=hunter2").output().expect("run it");
    assert!(!result(&help).1.contains("hunter2"));
}

#[test]
fn help_names_the_settings() {
    let (code, help, _) = result(&agent(&["--help"]).output().expect("run it"));
    assert_eq!(code, Some(0));
    for expected in
        ["--store-bytes", "PODOPSY_STORE_BYTES", "--socket", "--listen", "/etc/podopsy/agent.toml", "SIGHUP"]
    {
        assert!(help.contains(expected), "{expected} is not in:\n{help}");
    }
}

#[test]
fn profiles_without_a_destination_and_a_destination_without_profiles_are_wrong_usage() {
    for (args, expected) in [
        (&["--profile-hz", "19"][..], "set state-dir, pyroscope-url or otlp-profiles"),
        (&["--profile-hz", "0", "--pyroscope-url", "http://127.0.0.1:9"], "set profile-hz to 19, or neither"),
    ] {
        let (code, _, error) = result(&agent(args).output().expect("run it"));
        assert!(code == Some(2) && error.contains(expected), "{code:?} {error}");
    }
    // The always-on profile is on by default if there is a destination or a store for it.
    for args in [&["--pyroscope-url", "http://127.0.0.1:9", "--print-config"][..], &["--print-config"]] {
        let (code, out, error) = result(&agent(args).output().expect("run it"));
        assert!(code == Some(0) && out.contains("profile-hz = 19 # default"), "{out}{error}");
    }
}
