//! Every `podopsy-agent` command in the documentation must parse.

use clap::Parser;
use clap::error::ErrorKind;

use super::Args;

#[path = "../../../../../tests/docs/commands.rs"]
mod commands;

#[test]
fn every_command_in_the_documentation_parses() {
    let calls = commands::calls_of(&["podopsy-agent"]);
    assert!(calls.len() > 5, "only {} commands were found", calls.len());
    let mut wrong = Vec::new();
    for call in calls {
        let line = std::iter::once("podopsy-agent").chain(call.arguments.iter().map(String::as_str));
        match Args::try_parse_from(line) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {}
            Err(error) => wrong.push(format!("{}: {}\n{error}", call.at, call.arguments.join(" "))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
