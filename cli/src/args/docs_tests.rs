//! Every `podopsy` command in the documentation must parse.

use clap::error::ErrorKind;

#[path = "../../../tests/docs/commands.rs"]
mod commands;

#[test]
fn every_command_in_the_documentation_parses() {
    let calls = commands::calls_of(&["podopsy"]);
    assert!(calls.len() > 40, "only {} commands were found", calls.len());
    let mut wrong = Vec::new();
    for call in calls {
        let line = std::iter::once("podopsy").chain(call.arguments.iter().map(String::as_str));
        match super::read(line) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {}
            // Prose names commands, such as `podopsy profile`.
            Err(error) if error.kind() == ErrorKind::MissingRequiredArgument && is_name(&call.arguments) => {}
            Err(error) => wrong.push(format!("{}: podopsy {}\n{error}", call.at, call.arguments.join(" "))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_call_of_the_plugin_in_the_documentation_parses() {
    let calls = commands::calls_of(&["kubectl", "podopsy"]);
    assert!(calls.len() > 10, "only {} commands were found", calls.len());
    let mut wrong = Vec::new();
    for call in calls {
        let line = std::iter::once("kubectl-podopsy").chain(call.arguments.iter().map(String::as_str));
        match super::fleet::read(line) {
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {}
            Err(error) => wrong.push(format!("{}: {}\n{error}", call.at, call.arguments.join(" "))),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether the arguments are names of subcommands only.
fn is_name(arguments: &[String]) -> bool {
    arguments.iter().all(|argument| argument.bytes().all(|byte| byte.is_ascii_lowercase()))
}
