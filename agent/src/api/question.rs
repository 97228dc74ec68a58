//! A query string to a [`Filter`]: whatever is not understood is refused with what would be.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::answer::Refusal;
use super::route::Parameter;
use podopsy_model::{EventKind, text};
use podopsy_store::{Collection, Filter, ITEMS_MAX};

/// Items of a page unless told otherwise.
const ITEMS: usize = 100;
/// Of one question.
const PAIRS_MAX: usize = 64;
const VALUE_MAX: usize = 1024;

/// Reads a query string by the parameters that its route takes.
pub fn filter(collection: Collection, query: &str, takes: &[Parameter]) -> Result<Filter, Refusal> {
    let mut filter = Filter { items: ITEMS, ..Filter::all(collection) };
    let now = Timestamp::now();
    let mut seen = Vec::new();
    for (at, (name, value)) in form_urlencoded::parse(query.as_bytes()).enumerate() {
        if at >= PAIRS_MAX {
            return Err(Refusal::bad(format!("more than {PAIRS_MAX} parameters")));
        }
        let Some(&parameter) = takes.iter().find(|one| one.as_str() == name) else {
            let known: Vec<&str> = takes.iter().map(|one| one.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(Refusal::bad(format!("{}: no such parameter; there are: {known}", shown(&name))));
        };
        let refuse = |why: &str| Refusal::bad(format!("{}={}: {why}", parameter.as_str(), shown(&value)));
        if value.is_empty() || value.len() > VALUE_MAX || value.contains('\0') {
            return Err(refuse("empty, longer than 1024 bytes, or with a NUL"));
        }
        if !parameter.repeats() && seen.contains(&parameter) {
            return Err(refuse("given twice"));
        }
        seen.push(parameter);
        match parameter {
            Parameter::From => filter.from = time(&value, now).ok_or_else(|| refuse(TIME))?,
            Parameter::Until => filter.until = time(&value, now).ok_or_else(|| refuse(TIME))?,
            Parameter::Kind => {
                if !EventKind::ALL.iter().any(|kind| kind.as_str() == value) {
                    let all: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
                    return Err(refuse(&format!("use one of {}", all.join(", "))));
                }
                filter.kinds.push(value.into_owned());
            }
            Parameter::Namespace => filter.namespace = Some(value.into_owned()),
            Parameter::Pod => filter.pod = Some(value.into_owned()),
            Parameter::Container => filter.container = Some(value.into_owned()),
            Parameter::Label => {
                let (key, word) = value.split_once('=').ok_or_else(|| refuse("use key=value"))?;
                filter.labels.push((key.to_owned(), word.to_owned()));
            }
            Parameter::Order => match &*value {
                "newest" => filter.newest_first = true,
                "oldest" => filter.newest_first = false,
                _ => return Err(refuse("use newest or oldest")),
            },
            Parameter::Limit => {
                let number = Some(&value).filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()));
                let number = number.and_then(|value| value.parse().ok());
                let number = number.filter(|number| (1..=ITEMS_MAX).contains(number));
                filter.items = number.ok_or_else(|| refuse("use a number from 1 to 1000"))?;
            }
            Parameter::Cursor => {
                let cursor = value.parse().map_err(|()| refuse("use the `next` of the page before"))?;
                filter.after = Some(cursor);
            }
        }
    }
    if filter.from >= filter.until {
        return Err(Refusal::bad("from lies after until"));
    }
    Ok(filter)
}

const TIME: &str = "use a time (2026-01-31T23:59:00Z) or how long ago (15m, 2h)";

/// A time, or how long ago.
fn time(value: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(time) = value.parse() {
        return Some(time);
    }
    let ago: Duration = podopsy_model::duration::parse(value).ok()?;
    now.checked_sub(SignedDuration::try_from(ago).ok()?).ok()
}

/// Of what somebody sent, so much as a reason needs.
fn shown(value: &str) -> String {
    let short: String = value.chars().take(64).collect();
    text::escape(&short)
}
