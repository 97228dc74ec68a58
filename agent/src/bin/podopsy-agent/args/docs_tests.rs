//! Every `podopsy-agent` command in the documentation must parse.

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use super::AgentArgs;

#[path = "../../../../../tests/docs/commands.rs"]
mod commands;

#[test]
fn every_command_in_the_documentation_parses() {
    let calls = commands::calls_of(&["podopsy-agent"]);
    assert!(calls.len() > 5, "only {} commands were found", calls.len());
    let mut wrong = Vec::new();
    for call in calls {
        let line = std::iter::once("podopsy-agent").chain(call.arguments.iter().map(String::as_str));
        match AgentArgs::try_parse_from(line) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {}
            Err(error) => wrong.push(format!("{}: {}\n{error}", call.at, call.arguments.join(" "))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_setting_is_documented() {
    let docs = [include_str!("../../../../../docs/agent.md"), include_str!("../../../../../docs/exports.md")]
        .concat();
    let command = AgentArgs::command();
    let settings = command.get_arguments().filter(|one| !one.is_hide_set()).filter_map(|one| one.get_long());
    let missing: Vec<&str> = settings
        .filter(|name| !matches!(*name, "help" | "version"))
        .filter(|name| !docs.contains(&format!("`{name}`")) && !docs.contains(&format!("--{name}")))
        .collect();
    assert!(missing.is_empty(), "not in docs/agent.md or docs/exports.md: {missing:?}");
}
