//! `podopsy report`: one HTML file about some pods.

use jiff::Timestamp;

use crate::args::ReportArgs;
use crate::context::Context;
use crate::evidence::gather;
use crate::exit::CommandOutcome;
use crate::terminal::note;
use crate::{output, render};

pub async fn run(context: &Context, args: ReportArgs) -> anyhow::Result<CommandOutcome> {
    let (evidence, source) = gather::of_args(context, &args.evidence).await?;
    if evidence.is_empty() {
        note(
            "there is nothing to report: the history has no event, no memory and no profile of it in this time",
        );
        return Ok(CommandOutcome::NothingFound);
    }
    let report = render::report::build(&evidence, source, Timestamp::now());
    // The sentence first: it is the answer for a reader who opens no browser.
    note(&report.verdict.text);
    let document = podopsy_report::write(&report);
    if output::write_file(&args.write, 0o644, document.as_bytes())? {
        note(&format!("wrote {}: open it with any browser", output::shown(&args.write)));
    }
    Ok(CommandOutcome::Success)
}
