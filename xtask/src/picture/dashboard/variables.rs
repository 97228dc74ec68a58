//! A query's variables, replaced as Grafana replaces them.
//!
//! - A variable of the dashboard has its value `All`: the text `allValue`.
//! - `$__interval` is the time between two points, and at least the scrape interval.
//! - `$__rate_interval` is the larger of `$__interval` + scrape interval and four scrape intervals.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use super::answers::STEP;
use super::prometheus::SCRAPE_INTERVAL;

/// The variables that Grafana adds.
pub fn built_in() -> BTreeMap<String, String> {
    let interval = STEP.max(SCRAPE_INTERVAL);
    let rate_interval = (interval + SCRAPE_INTERVAL).max(4 * SCRAPE_INTERVAL);
    let seconds = |seconds: u64| format!("{seconds}s");
    BTreeMap::from([
        ("__interval".to_owned(), seconds(interval)),
        ("__rate_interval".to_owned(), seconds(rate_interval)),
    ])
}

/// Replaces `$name` and `${name}`; a `$` without a name is the end of a regular expression.
pub fn substitute(query: &str, values: &BTreeMap<String, String>) -> Result<String> {
    let mut out = String::new();
    let mut pieces = query.split('$');
    out.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let braced = piece.strip_prefix('{').and_then(|rest| rest.split_once('}'));
        let (name, rest) = braced.unwrap_or_else(|| {
            let end = piece.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(piece.len());
            piece.split_at(end)
        });
        if name.is_empty() {
            out.push('$');
        } else {
            let value = values.get(name);
            out.push_str(value.with_context(|| format!("the dashboard has no variable ${name}: {query}"))?);
        }
        out.push_str(rest);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn substituted(query: &str) -> Result<String> {
        let values = [("pod", ".*"), ("pod_name", "api"), ("__rate_interval", "8s")];
        substitute(query, &values.map(|(name, value)| (name.to_owned(), value.to_owned())).into())
    }

    #[test]
    fn each_notation_is_replaced() {
        let query = r#"rate(up{pod=~"$pod",name="$pod_name",x="${pod}y"}[$__rate_interval])"#;
        let expected = r#"rate(up{pod=~".*",name="api",x=".*y"}[8s])"#;
        assert_eq!(substituted(query).unwrap(), expected);
    }

    #[test]
    fn an_anchor_stays_and_an_unknown_variable_is_an_error() {
        assert_eq!(substituted(r#"up{pod=~"a$"}"#).unwrap(), r#"up{pod=~"a$"}"#);
        let error = substituted("up{node=\"$node\"}").unwrap_err().to_string();
        assert!(error.contains("no variable $node"), "{error}");
    }

    #[test]
    fn a_rate_sees_at_least_four_scrapes() {
        assert_eq!(built_in()["__interval"], format!("{SCRAPE_INTERVAL}s"));
        assert_eq!(built_in()["__rate_interval"], format!("{}s", 4 * SCRAPE_INTERVAL));
    }
}
