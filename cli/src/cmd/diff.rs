//! `podopsy profile diff`: compares two pprof files function by function.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::Context as _;
use podopsy_model::text;
use podopsy_profiles::compare::{self, ComparisonBasis};
use podopsy_profiles::export::differential;
use podopsy_profiles::import::{ImportedProfile, pprof};

use crate::args::{DiffArgs, DiffFormat};
use crate::context::Context;
use crate::exit::{CommandOutcome, Refusal};
use crate::output::{self, Output};
use crate::render;
use crate::terminal::{Terminal, note};

pub fn run(context: &Context, args: &DiffArgs) -> anyhow::Result<CommandOutcome> {
    let pending = output::prepare(outputs(args)?)?;
    let (before, after) = (read(&args.before, args)?, read(&args.after, args)?);
    if before.unit != after.unit {
        let (a, b) = (kind(&before), kind(&after));
        return Err(Refusal(format!(
            "cannot compare: the first file has {a}, the second {b}; choose a value type that both have with --value"
        ))
        .into());
    }
    for (path, profile) in [(&args.before, &before), (&args.after, &after)] {
        if profile.total() == 0 {
            note(&format!("{} has no samples: there is nothing to compare", shown(path)));
            return Ok(CommandOutcome::NothingFound);
        }
    }
    let by = if args.absolute { ComparisonBasis::Value } else { ComparisonBasis::Share };
    let compared = compare::compare(&before, &after, by);

    // Files before the table: they must be written even if the reader of stdout has closed the pipe.
    let stacks = compare::stacks(&before, &after, by);
    let title = format!("{} → {}", shown(&args.before), shown(&args.after));
    let mut failed = None;
    let written = pending.finish_with(|format, out| {
        let stacks = stacks.iter().map(|(stack, pair)| (stack.as_slice(), *pair));
        differential::write(format, &title, stacks, out)
    });
    for (output, result) in written {
        match result {
            Ok(()) => note(&format!("wrote {}", output.shown())),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    let mut out = io::stdout().lock();
    match args.output {
        DiffFormat::Json => render::json(&mut out, &compared)?,
        DiffFormat::Table => render::diff::print(&mut out, context.stdout, &compared, args.top)?,
        DiffFormat::Wide => {
            let wide = Terminal { width: None, ..context.stdout };
            render::diff::print(&mut out, wide, &compared, args.top)?;
        }
    }
    failed.map_or(Ok(CommandOutcome::Success), Err)
}

fn outputs(args: &DiffArgs) -> Result<Vec<Output>, Refusal> {
    let outputs = args.write.iter().map(|path| {
        let output =
            Output::new(path.clone(), None).ok().filter(|output| differential::is_supported(output.format));
        output.ok_or_else(|| Refusal(format!("{}: a difference is written as .folded or .svg", shown(path))))
    });
    outputs.collect()
}

fn read(path: &Path, args: &DiffArgs) -> anyhow::Result<ImportedProfile> {
    let file = File::open(path).with_context(|| format!("cannot open {}", shown(path)))?;
    pprof::read(file, args.value.as_deref()).with_context(|| shown(path))
}

fn kind(profile: &ImportedProfile) -> String {
    format!("{} in {}", profile.kind, profile.unit)
}

fn shown(path: &Path) -> String {
    text::escape_bytes(path.as_os_str().as_bytes())
}
