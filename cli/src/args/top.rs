//! Arguments of `top`.

use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use jiff::{SignedDuration, Span, SpanRelativeTo, Timestamp};
use podopsy_model::duration;
use podopsy_top::SortKey;

use super::{HistoryArgs, OutputArgs, SelectionArgs, examples};

/// Show what each container uses, live: CPU and throttling, memory against the limit, failed lookups, kills, restarts
///
/// CPU, memory and restarts come from the cgroups and the container runtime. Failed lookups, kills, the history (--at, left and
/// right) and the timeline need an agent. The flame graph samples the selected container while it is shown. ? lists the keys.
/// Without a terminal, or with -b, prints a table and ends.
#[derive(Debug, Args)]
#[command(after_help = examples::TOP)]
pub struct TopArgs {
    #[command(flatten)]
    pub selection: SelectionArgs,

    /// Print tables instead of a screen
    #[arg(short, long)]
    pub batch: bool,

    /// With --batch: how many tables; 0 goes on until Ctrl-C
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub count: u64,

    /// Time between two readings
    #[arg(short = 'd', long, value_name = "TIME", default_value = "2s", value_parser = duration::parse_interval)]
    pub interval: Duration,

    /// Show the agent's history at this time: "10 minutes ago", 10m or 2026-03-01T03:04:05Z
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub at: Option<Timestamp>,

    /// Sort by this column; see also --sort-by
    #[arg(short, long, value_name = "COLUMN", value_enum, default_value_t = SortColumn(SortKey::default()))]
    pub sort: SortColumn,

    /// A row for each pod instead of each container
    #[arg(long)]
    pub by_pod: bool,

    #[command(flatten)]
    pub output: OutputArgs,

    #[command(flatten)]
    pub history: HistoryArgs,
}

/// A column, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SortColumn(pub SortKey);

impl ValueEnum for SortColumn {
    fn value_variants<'a>() -> &'a [Self] {
        const ALL: [SortColumn; SortKey::ALL.len()] = {
            let mut all = [SortColumn(SortKey::Cpu); SortKey::ALL.len()];
            let mut at = 0;
            while at < all.len() {
                all[at] = SortColumn(SortKey::ALL[at]);
                at += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.0.as_str()))
    }
}

/// A time, or how long ago.
fn parse_time(text: &str) -> Result<Timestamp, String> {
    let grammar =
        || "use how long ago, like \"10 minutes ago\" or 10m, or a time like 2026-03-01T03:04:05Z".to_owned();
    let now = Timestamp::now();
    let time = match text.parse::<Timestamp>() {
        Ok(time) => time,
        Err(_) => {
            let span: Span = text.trim().parse().map_err(|_| grammar())?;
            let span = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| grammar())?;
            now.checked_sub(span.abs()).map_err(|_| grammar())?
        }
    };
    if time > now {
        return Err("it is in the future".to_owned());
    }
    Ok(time.max(Timestamp::UNIX_EPOCH + SignedDuration::from_hours(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_as_people_say_them() {
        for text in ["10 minutes ago", "10m", "10min", "600s"] {
            let ago = Timestamp::now().duration_since(parse_time(text).unwrap()).as_secs();
            assert!((599..605).contains(&ago), "{text}: {ago}");
        }
        let exact = parse_time("2026-03-01T03:04:05Z").unwrap();
        assert_eq!(exact.to_string(), "2026-03-01T03:04:05Z");
        for text in ["yesterday", "", "10", "9999-01-01T00:00:00Z"] {
            assert!(parse_time(text).is_err(), "{text}");
        }
    }
}
