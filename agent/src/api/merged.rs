//! Merges the profiles of a time window into one, for example those of a pod's last ten minutes.

use hyper::StatusCode;

use super::response::ApiError;
use podopsy_profiles::export::merge::ProfileMerger;
use podopsy_store::{Filter, ITEMS_MAX, ProfileFacts, Reader};

/// Profiles in one merge: half an hour of two hundred containers.
const PARTS_MAX: u64 = 6000;

/// Merges all profiles that match into one pprof file. Blocks for some milliseconds a profile.
pub fn merge(store: &Reader, mut filter: Filter) -> Result<Vec<u8>, ApiError> {
    let too_large = |why: String| ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, why);
    let unavailable = |why: String| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why);
    let (mut merged, mut facts, mut unreadable) = (ProfileMerger::default(), ProfileFacts::default(), 0u64);
    filter.items = ITEMS_MAX;
    loop {
        let page = store.page(&filter).map_err(|error| unavailable(error.to_string()))?;
        if merged.parts() + page.items.len() as u64 > PARTS_MAX {
            let why = format!("more than {PARTS_MAX} profiles: ask for less time, or for one pod");
            return Err(too_large(why));
        }
        for item in &page.items {
            if !merged.add(&item.body).map_err(|error| too_large(format!("{error:#}")))? {
                unreadable += 1;
                continue;
            }
            let own = item.facts.as_ref().and_then(|facts| serde_json::from_str::<ProfileFacts>(facts).ok());
            if let Some(own) = own {
                facts.add(&own);
            }
        }
        match page.next {
            Some(next) => filter.after = Some(next),
            None => break,
        }
    }
    if merged.parts() == 0 {
        let why = "no profile matches: the agent keeps one for each container and minute, unless it runs with --profile-hz 0";
        return Err(ApiError::new(StatusCode::NOT_FOUND, why));
    }
    let mut comments = vec![format!(
        "podopsy: {} samples at {} Hz, of {} profiles; unreadable: {unreadable}",
        facts.samples,
        facts.frequency_hz,
        merged.parts()
    )];
    comments.push(format!("user stacks: {} of {} complete", facts.complete, facts.user_stacks));
    comments.extend(facts.incomplete.iter().map(|(reason, count)| format!("incomplete {reason}: {count}")));
    merged.finish(&comments).map_err(|error| unavailable(format!("{error:#}")))
}
