//! Every `cargo xtask` command in the documentation must parse, and every link to a file must lead to one.

use std::path::Path;

use clap::Parser;
use clap::error::ErrorKind;

use super::Args;

#[path = "../../tests/docs/commands.rs"]
mod commands;

#[test]
fn every_command_in_the_documentation_parses() {
    let calls = commands::calls_of(&["cargo", "xtask"]);
    assert!(calls.len() > 10, "only {} commands were found", calls.len());
    let mut wrong = Vec::new();
    for call in calls {
        let line = std::iter::once("xtask").chain(call.arguments.iter().map(String::as_str));
        match Args::try_parse_from(line) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {}
            Err(error) => wrong.push(format!("{}: {}\n{error}", call.at, call.arguments.join(" "))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_relative_link_leads_to_a_file() {
    let mut missing = Vec::new();
    for page in commands::pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        // `](target)`, which neither code nor prose has for another purpose.
        let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.contains("://")) {
            let file = target.split('#').next().unwrap_or_default();
            if !page.parent().unwrap_or(Path::new("")).join(file).exists() {
                missing.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn a_subject_has_the_same_name_in_every_stage_as_architecture_md_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for subject in ["oom", "sigkill", "dns", "cpu"] {
        for stage in ["probe-ebpf/src", "probe-ebpf/wire/src", "agent/probes/src", "agent/decode/src"] {
            let file = root.join(stage).join(format!("{subject}.rs"));
            let folder = root.join(stage).join(subject);
            assert!(file.is_file() || folder.is_dir(), "{stage} has neither {subject}.rs nor {subject}/");
        }
        assert!(root.join("agent/recorder/src").join(subject).is_dir(), "{subject}");
    }
}
