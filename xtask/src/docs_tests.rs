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

#[test]
fn every_code_name_in_the_glossary_occurs_in_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut sources = Vec::new();
    for folder in ["agent", "cli/src", "probe-ebpf/src", "probe-ebpf/wire/src"] {
        read_sources(&root.join(folder), &mut sources);
    }
    let glossary = std::fs::read_to_string(root.join("docs/glossary.md")).unwrap();
    // `| term | in the code | definition |`, after the two lines of a table's head.
    let code_cells = glossary.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').nth(1));
    let names: Vec<&str> = code_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(names.len() > 80, "only {} names were found", names.len());
    let missing: Vec<&str> = names.into_iter().filter(|name| !occurs(name, &sources)).collect();
    assert!(missing.is_empty(), "not in the code: {missing:?}");
}

/// Whether some file defines the type of a name like `Type`, `module::Type::member` or `Type::{One, Two}` and contains the
/// members. A name without a type (a field, a function) has to occur as a word.
fn occurs(name: &str, sources: &[String]) -> bool {
    let words: Vec<&str> = words(name).collect();
    let has = |text: &str, word: &&str| self::words(text).any(|one| one == *word);
    let Some(at) = words.iter().position(|word| word.starts_with(char::is_uppercase)) else {
        return words.iter().all(|word| sources.iter().any(|text| has(text, word)));
    };
    let members = &words[at + 1..];
    sources.iter().any(|text| {
        let pairs = self::words(text).zip(self::words(text).skip(1));
        let is_defined = pairs
            .filter(|(keyword, _)| ["struct", "enum", "trait", "type"].contains(keyword))
            .any(|(_, defined)| defined == words[at]);
        is_defined && members.iter().all(|member| has(text, member))
    })
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn read_sources(folder: &Path, sources: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("target") {
            read_sources(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(std::fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn a_name_that_the_code_lacks_is_noticed() {
    let sources = ["pub enum End { Complete }".to_owned(), "pub struct Row; let answer = Owner;".to_owned()];
    for name in ["End", "End::Complete", "wire::End", "answer", "Row"] {
        assert!(occurs(name, &sources), "{name}");
    }
    for name in ["Owner", "End::Row", "StackEnd", "End::{Complete, Other}", "question"] {
        assert!(!occurs(name, &sources), "{name}");
    }
}
