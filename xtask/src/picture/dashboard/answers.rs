//! Prometheus's answers, as they are kept in docs/images/dashboard.json: one value a step, so that times need not be repeated.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The time between two points, in seconds.
pub const STEP: u64 = 2;

/// The answers to a dashboard's queries.
#[derive(Debug, Deserialize, Serialize)]
pub struct Answers {
    pub prometheus: String,
    #[serde(flatten)]
    pub span: Span,
    queries: BTreeMap<String, Vec<Series>>,
}

/// In seconds since 1970, both ends included.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq)]
pub struct Span {
    pub start: u64,
    pub end: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
pub struct Series {
    pub labels: BTreeMap<String, String>,
    /// A value for each step; none where the series has no sample, or no number.
    pub values: Vec<Option<f64>>,
}

/// A series as Prometheus's API writes it.
#[derive(Deserialize)]
struct Matrix {
    metric: BTreeMap<String, String>,
    values: Vec<(f64, String)>,
}

impl Span {
    /// The steps between two times. They begin at multiples of a step, as Grafana asks.
    pub fn between(start: u64, end: u64) -> Span {
        Span { start: start.next_multiple_of(STEP), end: end / STEP * STEP }
    }

    fn steps(self) -> usize {
        (self.end.saturating_sub(self.start) / STEP) as usize + 1
    }

    /// The time of a step.
    pub fn time(self, step: usize) -> f64 {
        (self.start + step as u64 * STEP) as f64
    }
}

impl Answers {
    pub fn new(prometheus: String, span: Span) -> Answers {
        Answers { prometheus, span, queries: BTreeMap::new() }
    }

    pub fn insert(&mut self, query: String, series: Vec<Series>) {
        self.queries.insert(query, series);
    }

    /// The answer to a query; none: it was not asked.
    pub fn series(&self, query: &str) -> Option<&[Series]> {
        self.queries.get(query).map(Vec::as_slice)
    }
}

/// Reads the answer to a range query: the list of `data.result`.
pub fn read_matrix(json: &str, span: Span) -> Result<Vec<Series>> {
    let matrix: Vec<Matrix> = serde_json::from_str(json).context("an answer to a range query")?;
    matrix.into_iter().map(|one| one.into_series(span)).collect()
}

impl Matrix {
    fn into_series(self, span: Span) -> Result<Series> {
        let mut values = vec![None; span.steps()];
        for (time, value) in self.values {
            let value: f64 = value.parse().with_context(|| format!("the value {value:?}"))?;
            let step = (time - span.start as f64) / STEP as f64;
            let slot = values.get_mut(step.round() as usize).context("a value outside of the asked time")?;
            // A quantile of nothing is NaN.
            *slot = value.is_finite().then(|| rounded(value));
        }
        Ok(Series { labels: self.metric, values })
    }
}

/// Four digits: more than a picture shows.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_becomes_a_value_for_each_step() {
        let json = r#"[{"metric":{"pod":"basket"},"values":[[100,"0"],[104,"1.33333333"],[106,"NaN"],[108,"2e-05"]]}]"#;
        let series = read_matrix(json, Span { start: 100, end: 110 }).unwrap();
        assert_eq!(series[0].labels["pod"], "basket");
        assert_eq!(series[0].values, [Some(0.0), None, Some(1.333), None, Some(2e-5), None]);
    }

    #[test]
    fn an_answer_about_another_time_is_an_error() {
        let json = r#"[{"metric":{},"values":[[112,"0"]]}]"#;
        assert!(read_matrix(json, Span { start: 100, end: 110 }).is_err());
    }

    #[test]
    fn a_span_begins_and_ends_at_a_step() {
        assert_eq!(Span::between(101, 109), Span { start: 102, end: 108 });
        assert_eq!(Span::between(101, 109).steps(), 4);
    }
}
