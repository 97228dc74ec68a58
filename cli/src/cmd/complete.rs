//! What `kubectl_complete-podopsy` prints: candidates, one a line, and the directive that kubectl expects (cobra's).

use std::io::{self, Write as _};

use crate::args::{CompleteArgs, fleet_command};
use crate::exit::CommandOutcome;

/// `ShellCompDirectiveNoFileComp`: the shell must not add the names of files.
const NO_FILES: &str = ":4";

pub fn run(args: &CompleteArgs) -> anyhow::Result<CommandOutcome> {
    let mut out = io::stdout().lock();
    for candidate in candidates(&args.words) {
        writeln!(out, "{candidate}")?;
    }
    writeln!(out, "{NO_FILES}")?;
    Ok(CommandOutcome::Success)
}

/// Subcommands or options that begin as the last word does.
fn candidates(words: &[String]) -> Vec<String> {
    let mut root = fleet_command();
    // Global options become those of each subcommand.
    root.build();
    let (last, before) = words.split_last().map_or(("", &[][..]), |(last, before)| (last.as_str(), before));
    let mut command = &root;
    for word in before {
        command = command.find_subcommand(word).unwrap_or(command);
    }
    let with_help = |name: &str, help: Option<&clap::builder::StyledStr>| match help {
        Some(help) => format!("{name}\t{}", help.to_string().lines().next().unwrap_or_default()),
        None => name.to_owned(),
    };
    let commands =
        command.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
    let commands = commands.map(|command| (command.get_name().to_owned(), command.get_about()));
    let options = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let options = options.filter_map(|arg| Some((format!("--{}", arg.get_long()?), arg.get_help())));
    let all: Vec<_> = if last.starts_with('-') { options.collect() } else { commands.collect() };
    let matching = all.into_iter().filter(|(name, _)| name.starts_with(last));
    matching.map(|(name, help)| with_help(&name, help)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_options_are_completed() {
        let names = |words: &[&str]| -> Vec<String> {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            candidates(&words).iter().map(|line| line.split('\t').next().unwrap().to_owned()).collect()
        };
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
