//! `podopsy top`: what the containers use, on a screen that follows, or as tables.

use std::io::{self, Write as _};

use podopsy_top::{ContainerRow, Snapshot, by_pod, sort};
use tokio::time::sleep;

use super::watch::reader_is_gone;
use crate::args::{OutputFormat, TopArgs};
use crate::context::Context;
use crate::exit::CommandOutcome;
use crate::render::list::{self, TableStyle};
use crate::terminal::note;
use crate::top::screen;
use crate::top::source::Source;
use crate::{log, render, signals};

pub async fn run(context: &Context, args: TopArgs) -> anyhow::Result<CommandOutcome> {
    let mut source = Source::start(context, &args).await?;
    if args.batch || !context.stdout.is_terminal() || args.output.output != OutputFormat::Table {
        return batch(context, &args, &mut source).await;
    }
    let outcome = screen::run(context, &args, &mut source).await;
    // Warnings came while the screen was open.
    log::release_held("");
    outcome
}

/// Prints tables, one after the other.
async fn batch(context: &Context, args: &TopArgs, source: &mut Source) -> anyhow::Result<CommandOutcome> {
    let mut stop = std::pin::pin!(signals::stop()?);
    let mut printed = 0;
    loop {
        let snapshot = tokio::select! {
            snapshot = source.snapshot() => snapshot?,
            () = &mut stop => return Ok(CommandOutcome::Success),
        };
        let is_last = args.count != 0 && printed + 1 >= args.count;
        let is_empty = snapshot.rows.is_empty();
        print(context, args, snapshot)?;
        printed += 1;
        if is_last || !source.is_live() {
            return Ok(if is_empty { CommandOutcome::NothingFound } else { CommandOutcome::Success });
        }
        tokio::select! {
            () = sleep(args.interval) => {}
            () = &mut stop => return Ok(CommandOutcome::Success),
        }
        if reader_is_gone() || source.is_over() {
            return Ok(CommandOutcome::Success);
        }
    }
}

fn print(context: &Context, args: &TopArgs, mut snapshot: Snapshot) -> anyhow::Result<()> {
    if args.by_pod {
        snapshot.rows = by_pod(&snapshot.rows);
    }
    sort(&mut snapshot.rows, args.sort.0, false);
    list::sort(&mut snapshot.rows, args.output.sort_by.as_ref())?;
    let mut out = io::stdout().lock();
    let name = |row: &ContainerRow| Some(row.key().target());
    if list::print(&mut out, context.stdout, &args.output, &snapshot.rows, name)? {
        return Ok(out.flush()?);
    }
    match args.output.output {
        OutputFormat::Json => {
            serde_json::to_writer(&mut out, &snapshot)?;
            writeln!(out)?;
        }
        OutputFormat::Yaml => render::yaml(&mut out, &snapshot)?,
        _ => {
            if !snapshot.rows.is_empty() {
                render::usage::print(
                    &mut out,
                    TableStyle::new(context.stdout, &args.output),
                    &snapshot.rows,
                )?;
            }
            snapshot.notes.iter().for_each(|line| note(line));
            if snapshot.rows.is_empty() {
                note("no containers match");
            }
        }
    }
    Ok(out.flush()?)
}
