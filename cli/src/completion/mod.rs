//! Completions of a command line: commands, options and values by clap's definition, and names that exist on this machine.
//!
//! Must be fast and silent: a shell waits for it while someone types.

mod live;

use std::ffi::OsString;
use std::io;

use clap::{Arg, Command, ValueHint};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, complete};

pub use live::Live;

/// The scripts of the shells that ask podopsy itself.
pub const BASH: &str = include_str!("podopsy.bash");
pub const ZSH: &str = include_str!("podopsy.zsh");
pub const FISH: &str = include_str!("podopsy.fish");

/// A word that fits, and what it means.
#[derive(Debug, PartialEq)]
pub struct Candidate {
    pub value: String,
    pub help: String,
}

/// The candidates for the last of the words that stand behind the program's name. With `live`, its names are among them.
pub fn candidates(command: Command, words: &[String], live: Option<&Live>) -> io::Result<Vec<Candidate>> {
    let mut command = prepared(command, live);
    let mut args: Vec<OsString> = vec!["podopsy".into()];
    args.extend(words.iter().map(OsString::from));
    if words.is_empty() {
        args.push(OsString::new());
    }
    let last = args.len() - 1;
    let found: Vec<Candidate> =
        complete(&mut command, args, last, None)?.iter().filter_map(candidate).collect();
    let is_option = |one: &Candidate| one.value.starts_with('-');
    // Options are offered to someone who types a dash, or where there is nothing else.
    let wants_options = words.last().is_some_and(|word| word.starts_with('-')) || found.iter().all(is_option);
    Ok(found.into_iter().filter(|one| wants_options || !is_option(one)).collect())
}

fn candidate(candidate: &CompletionCandidate) -> Option<Candidate> {
    let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
    let help = help.lines().next().unwrap_or_default().to_owned();
    Some(Candidate { value: candidate.get_value().to_str()?.to_owned(), help })
}

/// The definition, with the completers of values.
fn prepared(command: Command, live: Option<&Live>) -> Command {
    let command = command.disable_help_subcommand(true).mut_args(|arg| with_completer(arg, live));
    command.mut_subcommands(|command| prepared(command, live))
}

fn with_completer(arg: Arg, live: Option<&Live>) -> Arg {
    // The shell itself completes paths, and knows how to quote them.
    if arg.get_value_hint() == ValueHint::AnyPath {
        return arg.value_hint(ValueHint::Other);
    }
    let name = arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    let (Some(live), Some(name)) = (live.cloned(), name) else { return arg };
    let complete: fn(&Live, &str) -> Vec<CompletionCandidate> = match name.as_str() {
        "TARGET" => Live::targets,
        "KIND or TARGET" => Live::kinds_and_targets,
        "NAMESPACE" => Live::namespaces,
        "ID" => Live::incidents,
        "TOPIC" => Live::topics,
        _ => return arg,
    };
    arg.add(ArgValueCompleter::new(move |current: &std::ffi::OsStr| {
        current.to_str().map(|current| complete(&live, current)).unwrap_or_default()
    }))
}
