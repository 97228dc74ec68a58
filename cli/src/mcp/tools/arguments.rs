//! Arguments that several tools have, checked as they are read.

use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;
use podopsy_model::{Target, duration, text};
use serde::Deserialize;

/// How far back to look.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "String")]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(inline))]
pub struct Since(#[cfg_attr(test, schemars(with = "String"))] Duration);

impl TryFrom<String> for Since {
    type Error = String;

    fn try_from(text: String) -> Result<Since, String> {
        duration::parse(&text).map(Since).map_err(|why| format!("since {:?}: {why}", text::escape(&text)))
    }
}

impl Since {
    /// The argument, or `hours` where there is none.
    pub fn or_hours(since: Option<Since>, hours: u64) -> SignedDuration {
        let since = since.map_or(Duration::from_secs(hours * 3600), |since| since.0);
        SignedDuration::try_from(since).unwrap_or(SignedDuration::MAX)
    }
}

/// Pods or a container.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "String")]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(inline))]
pub struct TargetName(#[cfg_attr(test, schemars(with = "String"))] Target);

impl TryFrom<String> for TargetName {
    type Error = String;

    fn try_from(text: String) -> Result<TargetName, String> {
        text.parse().map(TargetName).map_err(|error: <Target as FromStr>::Err| error.to_string())
    }
}

impl From<TargetName> for Target {
    fn from(name: TargetName) -> Target {
        name.0
    }
}

/// The number of entries.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "u64")]
#[cfg_attr(
    test,
    derive(schemars::JsonSchema),
    schemars(inline, extend("minimum" = 1, "maximum" = LIMIT_MAX))
)]
pub struct Limit(usize);

/// The most entries of a list.
const LIMIT_MAX: usize = 500;

impl TryFrom<u64> for Limit {
    type Error = String;

    fn try_from(number: u64) -> Result<Limit, String> {
        match usize::try_from(number) {
            Ok(number @ 1..=LIMIT_MAX) => Ok(Limit(number)),
            _ => Err(format!("limit is a number from 1 to {LIMIT_MAX}")),
        }
    }
}

impl Limit {
    pub fn or(limit: Option<Limit>, number: usize) -> usize {
        limit.map_or(number, |limit| limit.0)
    }
}
