//! `podopsy completion` and `podopsy man-pages`: what shells and `man` are to know of the command line, from its definition.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::args::{Cli, CompletionArgs, ManPagesArgs};
use crate::completion;
use crate::exit::CommandOutcome;

pub fn completion(args: CompletionArgs) -> anyhow::Result<CommandOutcome> {
    let script = match args.shell {
        Shell::Bash => completion::BASH.into(),
        Shell::Zsh => completion::ZSH.into(),
        Shell::Fish => completion::FISH.into(),
        shell => without_names(shell),
    };
    io::stdout().lock().write_all(&script)?;
    Ok(CommandOutcome::Success)
}

/// A script that knows the definition of the command line alone.
fn without_names(shell: Shell) -> Vec<u8> {
    // By way of memory: the library panics if the reader of a pipe has closed it.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "podopsy", &mut script);
    script
}

pub fn man_pages(args: &ManPagesArgs) -> anyhow::Result<CommandOutcome> {
    let folder = &args.folder;
    clap_mangen::generate_to(Cli::command(), folder).with_context(|| folder.display().to_string())?;
    Ok(CommandOutcome::Success)
}
