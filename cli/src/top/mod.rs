//! `podopsy top`: where its rows come from, and its screen.
//!
//! | module | does |
//! |---|---|
//! | [`screen`] | follows keys and rows on the terminal |
//! | [`source`] | rows and pages, of a node or of a cluster |
//! | [`live`] | reads the cgroups of this node, the runtime, and an agent's last events |
//! | [`past`] | reads an agent's history, at one time |
//! | [`remote`] | asks the agents of a cluster |
//! | [`pages`] | the timeline, the autopsy and the flame graph of one container |

pub mod live;
pub mod pages;
pub mod past;
pub mod remote;
pub mod screen;
pub mod source;

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use podopsy_model::{Detail, Event, Owner};

/// Kills are counted over this time.
pub const KILLS_WITHIN: SignedDuration = SignedDuration::from_hours(1);
/// Failed queries are counted over this time.
const FAILURES_WITHIN: SignedDuration = SignedDuration::from_secs(10);

/// Namespace, pod and container.
type Names = (String, String, String);

fn names(owner: &Owner) -> Option<Names> {
    let (pod, container) = (owner.pod.as_ref()?, owner.container.as_ref()?);
    Some((pod.namespace.clone(), pod.name.clone(), container.name.clone()))
}

/// What events say of containers at a time.
#[derive(Debug, Default)]
struct EventCounts {
    kills: HashMap<Names, u64>,
    failures: HashMap<Names, u64>,
}

impl EventCounts {
    fn at<'a>(events: impl IntoIterator<Item = &'a Event>, time: Timestamp) -> EventCounts {
        let mut counts = EventCounts::default();
        for event in events {
            let Some(names) = names(&event.owner()) else { continue };
            let age = time.duration_since(event.time);
            let is_within = |window: SignedDuration| age >= SignedDuration::ZERO && age <= window;
            match &event.detail {
                Detail::Dns(query) if query.is_failure() && is_within(FAILURES_WITHIN) => {
                    *counts.failures.entry(names).or_default() += 1;
                }
                _ => {
                    let killed = event.incident.as_ref().filter(|_| is_within(KILLS_WITHIN));
                    if let Some(incident) = killed {
                        *counts.kills.entry(names).or_default() += incident.victims.len().max(1) as u64;
                    }
                }
            }
        }
        counts
    }

    fn kills(&self, names: &Names) -> u64 {
        self.kills.get(names).copied().unwrap_or(0)
    }

    fn failures_per_second(&self, names: &Names) -> f64 {
        let failures = self.failures.get(names).copied().unwrap_or(0);
        failures as f64 / FAILURES_WITHIN.as_secs_f64()
    }
}
