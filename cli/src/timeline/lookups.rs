//! Failed DNS queries of one pod, joined to streaks.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use jiff::Timestamp;
use podopsy_model::{Detail, DnsTransaction, Event, Owner};

use super::{EntryKind, TimelineEntry};
use crate::render::units;

/// A streak ends when no lookup of the pod fails for this long.
const PAUSE_SECONDS: i64 = 60;
/// The names that an entry lists.
const NAMES_MAX: usize = 3;

/// Failures of one pod with short pauses between them.
struct Streak {
    from: Timestamp,
    until: Timestamp,
    owner: Owner,
    names: BTreeMap<String, u64>,
    outcomes: BTreeMap<&'static str, u64>,
    failures: u64,
}

pub fn entries(events: &[Event]) -> Vec<TimelineEntry> {
    // By the pod's uid: the streak that is not over.
    let mut open: BTreeMap<String, Streak> = BTreeMap::new();
    let mut ended = Vec::new();
    for event in events {
        let Detail::Dns(query) = &event.detail else { continue };
        let Some(pod) = event.pod.as_ref().filter(|_| query.is_failure()) else { continue };
        if let Some(streak) = open.get_mut(&pod.uid)
            && event.time.duration_since(streak.until).as_secs() <= PAUSE_SECONDS
        {
            streak.add(event.time, query);
            continue;
        }
        ended.extend(open.insert(pod.uid.clone(), Streak::new(event, query)));
    }
    ended.into_iter().chain(open.into_values()).filter_map(Streak::into_entry).collect()
}

impl Streak {
    fn new(event: &Event, query: &DnsTransaction) -> Streak {
        let mut streak = Streak {
            from: event.time,
            until: event.time,
            owner: event.owner(),
            names: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            failures: 0,
        };
        streak.add(event.time, query);
        streak
    }

    fn add(&mut self, time: Timestamp, query: &DnsTransaction) {
        let name = query.name.as_deref().unwrap_or("(unreadable)").to_owned();
        *self.names.entry(name).or_default() += 1;
        *self.outcomes.entry(query.outcome.as_str()).or_default() += 1;
        self.until = self.until.max(time);
        self.failures += 1;
    }

    fn into_entry(self) -> Option<TimelineEntry> {
        let mut names: Vec<(&String, &u64)> = self.names.iter().collect();
        names.sort_by_key(|(_, count)| Reverse(**count));
        let more = names.len().saturating_sub(NAMES_MAX);
        let listed: Vec<String> =
            names.iter().take(NAMES_MAX).map(|(name, count)| format!("{name} ({count})")).collect();
        let more = if more > 0 {
            format!(" and {}", units::plural(more as u64, "other name"))
        } else {
            String::new()
        };
        let outcomes: Vec<String> =
            self.outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
        let seconds = self.until.duration_since(self.from).as_secs();
        let span = if seconds > 0 { format!(" within {seconds} s") } else { String::new() };
        let text = format!(
            "{} failed{span}: {}{more}; {}",
            if self.failures == 1 { "1 query".to_owned() } else { format!("{} queries", self.failures) },
            listed.join(", "),
            outcomes.join(", ")
        );
        let entry = TimelineEntry::of(self.from, EntryKind::DnsFailures, &self.owner, text)?;
        Some(TimelineEntry { until: Some(self.until), ..entry })
    }
}
