//! Precedence, origins, and the errors for a wrong file. `agent/tests/service.rs` tests the environment.

use std::fs;

use clap::Parser;
use tempfile::tempdir;

use super::*;

#[derive(Debug, Parser)]
struct TestArgs {
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[arg(long, default_value = "5s", value_parser = podopsy_model::duration::parse_dns_timeout)]
    dns_timeout: std::time::Duration,
    #[arg(long)]
    dns_answers: bool,
    #[arg(long = "dns-port")]
    dns_ports: Vec<u16>,
    #[arg(long)]
    node: Option<String>,
    #[arg(long, hide_env_values = true)]
    token: Vec<String>,
}

fn loaded(file: &str, flags: &[&str]) -> Result<LoadedConfig<TestArgs>, String> {
    let dir = tempdir().unwrap();
    let path = dir.path().join("a.toml");
    fs::write(&path, file).unwrap();
    let argv = ["podopsy-agent", "--config", path.to_str().unwrap()].into_iter().chain(flags.iter().copied());
    load(&argv.map(OsString::from).collect::<Vec<_>>()).map_err(|error| {
        let text = error.to_string().replace(path.to_str().unwrap(), "a.toml");
        text.lines().next().unwrap_or_default().to_owned()
    })
}

fn origin(loaded: &LoadedConfig<TestArgs>, name: &str) -> Origin {
    loaded.settings.iter().find(|setting| setting.name == name).unwrap().origin.clone()
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let file = "# ours\ndns-timeout = \"3s\"\ndns-answers = true\ndns-port = [53, 5353]\n";
    let it = loaded(file, &[]).unwrap();
    assert_eq!((it.args.dns_timeout.as_secs(), it.args.dns_answers), (3, true));
    assert_eq!((it.args.dns_ports.as_slice(), it.args.node.as_deref()), ([53, 5353].as_slice(), None));
    assert!(matches!(origin(&it, "dns-timeout"), Origin::File(_, 2)));
    assert!(matches!(origin(&it, "dns-port"), Origin::File(_, 4)));
    assert_eq!(origin(&it, "node"), Origin::Default);

    let it = loaded(file, &["--dns-timeout", "7s", "--dns-answers=false", "--dns-port=54"]).unwrap();
    assert_eq!((it.args.dns_timeout.as_secs(), it.args.dns_answers), (7, false));
    assert_eq!((it.args.dns_ports.as_slice(), origin(&it, "dns-answers")), ([54].as_slice(), Origin::Flag));
    assert!(loaded("", &["--dns-answers"]).unwrap().args.dns_answers);
    assert!(it.args.config.is_some());
}

#[test]
fn an_error_in_the_file_names_its_line() {
    for (file, expected) in [
        (
            "\ndns_timeout = \"3s\"",
            "a.toml:2: there is no setting dns_timeout; is dns-timeout meant? podopsy-agent",
        ),
        ("zzz = 1", "a.toml:1: there is no setting zzz; podopsy-agent --print-config"),
        ("config = \"b.toml\"", "a.toml:1: there is no setting config"),
        ("[dns]\ntimeout = \"3s\"", "a.toml:1: dns must be a string"),
        ("node = \"a\"\ndns-timeout = \"3\"", "a.toml:2: dns-timeout: invalid value '3'"),
        ("dns-timeout = [\"3s\", \"4s\"]", "a.toml:1: dns-timeout:"),
        ("dns-answers = \"maybe\"", "a.toml:1: dns-answers: invalid value 'maybe'"),
        ("node = \"a\"\nnode = \"b\"", "a.toml:2: "),
        ("node = ", "a.toml:1: "),
        ("node = \"a\u{1b}[2J\"", "a.toml:1: "),
        ("\"\\u001b[2J\" = 1", "a.toml:1: there is no setting \\x1b[2J;"),
    ] {
        let error = loaded(file, &[]).unwrap_err();
        assert!(error.starts_with(expected), "{file:?}: {error}");
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }
    let missing =
        load::<TestArgs>(&["a".into(), "--config=/nonexistent.toml".into()]).unwrap_err().to_string();
    assert_eq!(missing, "there is no /nonexistent.toml (--config)");
    let no_file = load::<TestArgs>(&["a".into(), "--config=/dev/zero".into()]).unwrap_err().to_string();
    assert_eq!(no_file, "/dev/zero: it is no regular file");
}

#[test]
fn a_secret_is_used_and_not_printed() {
    let it = loaded("token = [\"hunter2\"]", &[]).unwrap();
    let printed = print(&it.settings);
    assert_eq!(it.args.token, ["hunter2"]);
    assert!(
        printed.contains("# token is set, and not shown # ") && printed.contains("a.toml:1"),
        "{printed}"
    );
    assert!(!printed.contains("hunter2"), "{printed}");
    // A reload still detects a changed secret.
    let other = loaded("token = [\"hunter3\"]", &[]).unwrap();
    assert_eq!(changed(&it.settings, &other.settings).len(), 1);
}

#[test]
fn the_printed_configuration_loads_to_the_same_settings() {
    let it = loaded("dns-port = [53, 5353]\nnode = \"a \\\"b\\\" \\\\ 007\"", &["--dns-answers"]).unwrap();
    let printed = print(&it.settings);
    assert!(printed.contains("dns-timeout = \"5s\" # default\n"), "{printed}");
    assert!(printed.contains("dns-answers = true # a flag\n") && printed.contains("a.toml:1\n"), "{printed}");
    let again = loaded(&printed, &[]).unwrap();
    assert!(changed(&it.settings, &again.settings).is_empty(), "{printed}");
    assert_eq!((again.args.node, again.args.dns_ports), (it.args.node, it.args.dns_ports));
    let other = loaded("node = \"c\"", &[]).unwrap();
    let names: Vec<_> =
        changed(&it.settings, &other.settings).iter().map(|setting| setting.name.clone()).collect();
    assert_eq!(names, ["dns-answers", "dns-port", "node"]);
}
