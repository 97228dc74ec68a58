//! `podopsy __complete`, which shells call, and what `kubectl_complete-podopsy` prints: candidates, one a line, with their
//! meaning behind a tab.

use std::io::{self, Write as _};

use clap::CommandFactory as _;

use crate::args::{Cli, CompleteArgs, fleet_command};
use crate::completion::{Candidate, Live, candidates};
use crate::context::Context;
use crate::exit::CommandOutcome;

/// `ShellCompDirectiveNoFileComp` of cobra, which kubectl expects: the shell must not add the names of files.
const NO_FILES: &str = ":4";

pub fn run(context: &Context, args: &CompleteArgs) -> anyhow::Result<CommandOutcome> {
    let live = Live::new(context.clone(), &args.words);
    print(&candidates(Cli::command(), &args.words, Some(&live))?)?;
    Ok(CommandOutcome::Success)
}

/// For kubectl. Names are not asked for: that takes longer than a shell should wait.
pub fn run_plugin(args: &CompleteArgs) -> anyhow::Result<CommandOutcome> {
    print(&candidates(fleet_command(), &args.words, None)?)?;
    writeln!(io::stdout().lock(), "{NO_FILES}")?;
    Ok(CommandOutcome::Success)
}

fn print(candidates: &[Candidate]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    candidates.iter().try_for_each(|one| match one.help.as_str() {
        "" => writeln!(out, "{}", one.value),
        help => writeln!(out, "{}\t{help}", one.value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(command: clap::Command, words: &[&str]) -> Vec<String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        candidates(command, &words, None).unwrap().into_iter().map(|one| one.value).collect()
    }

    #[test]
    fn commands_options_and_values_are_completed() {
        let names = |words: &[&str]| names(Cli::command(), words);
        assert_eq!(names(&["pro"]), ["profile"]);
        assert!(names(&["oom", "--no-h"]).contains(&"--no-headers".to_owned()));
        assert_eq!(names(&["events", "--kind", "dns.f"]), ["dns.failure"]);
        assert!(names(&["report", "-w", "/"]).is_empty(), "the shell completes paths");
        assert!(names(&[]).iter().all(|name| name != "help" && !name.starts_with(['_', '-'])));
        assert!(names(&["--"]).contains(&"--node".to_owned()));
    }

    #[test]
    fn the_plugin_completes_its_own_commands_and_options() {
        let names = |words: &[&str]| names(fleet_command(), words);
        assert_eq!(names(&["p"]), ["profile", "pods"]);
        assert_eq!(names(&["oom", ""]), ["show"]);
        let options = names(&["oom", "--s"]);
        assert!(
            options.contains(&"--since".to_owned()) && !options.contains(&"--socket".to_owned()),
            "{options:?}"
        );
        assert!(names(&["events", "--no"]).contains(&"--node".to_owned()));
        assert!(names(&[""]).iter().all(|name| !name.starts_with('_')));
    }
}
