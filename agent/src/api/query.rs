//! Parses a query string into a [`Filter`]. Anything unknown is rejected with a list of what is accepted.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::response::ApiError;
use super::route::Parameter;
use podopsy_model::{EventKind, text};
use podopsy_store::{Collection, Filter, ITEMS_MAX};

/// Items of a page by default.
const ITEMS: usize = 100;
/// Parameters of one request, and bytes of one value.
const PAIRS_MAX: usize = 64;
const VALUE_MAX: usize = 1024;

/// Parses a query string with the parameters that its route accepts.
pub fn parse(collection: Collection, query: &str, accepted: &[Parameter]) -> Result<Filter, ApiError> {
    let mut filter = Filter { items: ITEMS, ..Filter::all(collection) };
    let now = Timestamp::now();
    let mut seen = Vec::new();
    for (at, (name, value)) in form_urlencoded::parse(query.as_bytes()).enumerate() {
        if at >= PAIRS_MAX {
            return Err(ApiError::bad_request(format!("more than {PAIRS_MAX} parameters")));
        }
        let Some(&parameter) = accepted.iter().find(|parameter| parameter.as_str() == name) else {
            let known: Vec<&str> = accepted.iter().map(|parameter| parameter.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            return Err(ApiError::bad_request(format!(
                "{}: no such parameter; there are: {known}",
                shown(&name)
            )));
        };
        let reject =
            |why: &str| ApiError::bad_request(format!("{}={}: {why}", parameter.as_str(), shown(&value)));
        if value.is_empty() || value.len() > VALUE_MAX || value.contains('\0') {
            return Err(reject("empty, longer than 1024 bytes, or with a NUL"));
        }
        if !parameter.can_repeat() && seen.contains(&parameter) {
            return Err(reject("given twice"));
        }
        seen.push(parameter);
        match parameter {
            Parameter::From => filter.from = time(&value, now).ok_or_else(|| reject(TIME))?,
            Parameter::Until => filter.until = time(&value, now).ok_or_else(|| reject(TIME))?,
            Parameter::Kind => {
                if !EventKind::ALL.iter().any(|kind| kind.as_str() == value) {
                    let all: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.as_str()).collect();
                    return Err(reject(&format!("use one of {}", all.join(", "))));
                }
                filter.kinds.push(value.into_owned());
            }
            Parameter::Namespace => filter.namespace = Some(value.into_owned()),
            Parameter::Pod => filter.pod = Some(value.into_owned()),
            Parameter::Container => filter.container = Some(value.into_owned()),
            Parameter::Label => {
                let (key, value) = value.split_once('=').ok_or_else(|| reject("use key=value"))?;
                filter.labels.push((key.to_owned(), value.to_owned()));
            }
            Parameter::Order => match &*value {
                "newest" => filter.newest_first = true,
                "oldest" => filter.newest_first = false,
                _ => return Err(reject("use newest or oldest")),
            },
            Parameter::Limit => {
                let number = Some(&value).filter(|value| value.bytes().all(|byte| byte.is_ascii_digit()));
                let number = number.and_then(|value| value.parse().ok());
                let number = number.filter(|number| (1..=ITEMS_MAX).contains(number));
                filter.items = number.ok_or_else(|| reject("use a number from 1 to 1000"))?;
            }
            Parameter::Cursor => {
                let cursor = value.parse().map_err(|()| reject("use the `next` of the page before"))?;
                filter.after = Some(cursor);
            }
        }
    }
    if filter.from >= filter.until {
        return Err(ApiError::bad_request("from is not before until"));
    }
    Ok(filter)
}

const TIME: &str = "use a time (2026-01-31T23:59:00Z) or how long ago (15m, 2h, 7d)";

/// Parses a time (RFC 3339), or how long ago it was.
fn time(value: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(time) = value.parse() {
        return Some(time);
    }
    let ago: Duration = podopsy_model::duration::parse(value).ok()?;
    now.checked_sub(SignedDuration::try_from(ago).ok()?).ok()
}

/// The start of a value from the client, escaped, for an error message.
fn shown(value: &str) -> String {
    let short: String = value.chars().take(64).collect();
    text::escape(&short)
}
