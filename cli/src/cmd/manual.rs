//! `podopsy completion` and `podopsy man-pages`: what shells and `man` are to know of the command line, from its definition.

use std::io::{self, Write as _};

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::args::{Cli, CompletionArgs, ManPagesArgs};
use crate::exit::CommandOutcome;

pub fn completion(args: CompletionArgs) -> anyhow::Result<CommandOutcome> {
    // By way of memory: the library panics if the reader of a pipe has closed it.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "podopsy", &mut script);
    io::stdout().lock().write_all(&script)?;
    Ok(CommandOutcome::Success)
}

pub fn man_pages(args: &ManPagesArgs) -> anyhow::Result<CommandOutcome> {
    let folder = &args.folder;
    clap_mangen::generate_to(Cli::command(), folder).with_context(|| folder.display().to_string())?;
    Ok(CommandOutcome::Success)
}
