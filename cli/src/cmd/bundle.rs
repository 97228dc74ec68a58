//! `podopsy bundle`: the evidence about some pods in one file.

use crate::args::{BundleArgs, Redaction};
use crate::context::Context;
use crate::evidence::{bundle, gather};
use crate::exit::CommandOutcome;
use crate::output;
use crate::render::units;
use crate::terminal::note;

pub async fn run(context: &Context, args: BundleArgs) -> anyhow::Result<CommandOutcome> {
    let (evidence, _) = gather::of_args(context, &args.evidence).await?;
    if evidence.is_empty() {
        note(
            "there is nothing to bundle: the history has no event, no memory and no profile of it in this time",
        );
        return Ok(CommandOutcome::NothingFound);
    }
    let mut content = Vec::new();
    bundle::write(&evidence, &args.redact, &mut content)?;
    // Only its owner may read it: names can be confidential.
    if output::write_file(&args.write, 0o600, &content)? {
        let (file, size) = (output::shown(&args.write), units::bytes(content.len() as u64));
        note(&format!(
            "wrote {file}, {size}: {}; podopsy report --from {file} reads it",
            holds(&args.redact)
        ));
    }
    Ok(CommandOutcome::Success)
}

/// The privacy note.
fn holds(redactions: &[Redaction]) -> &'static str {
    match (redactions.contains(&Redaction::Names), redactions.contains(&Redaction::Args)) {
        (true, true) => "it holds names of functions, and numbers in place of other names",
        (true, false) => "it holds names of processes, program files and functions",
        (false, true) => "it holds names of pods, images, nodes, functions and DNS, and labels",
        (false, false) => "it holds names of pods, images, nodes, processes, functions and DNS, and labels",
    }
}
