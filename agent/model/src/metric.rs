//! Metrics, independent of the format in which they are written.

/// Label names and values. Names are constants; values are escaped when they are written.
pub type Labels = Vec<(&'static str, String)>;

/// All samples with the same metric name.
#[derive(Clone, Debug)]
pub struct MetricFamily {
    /// The name without the `_total` of a counter, which each format puts in a different place.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: MetricKind,
    pub samples: Vec<MetricSample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Debug)]
pub struct MetricSample {
    pub labels: Labels,
    pub value: MetricValue,
    /// Only for a counter, and only written in the OpenMetrics format.
    pub exemplar: Option<Exemplar>,
}

#[derive(Clone, Debug)]
pub enum MetricValue {
    Count(u64),
    Number(f64),
    Histogram(Histogram),
}

/// Counts by upper bound, not cumulative.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// (upper bound in seconds, count), in ascending order. Values above the last bound are counted in `above`.
    pub buckets: Vec<(f64, u64)>,
    pub above: u64,
    /// The sum in seconds. None: not known; it is then left out of the output.
    pub sum: Option<f64>,
}

/// An example of a counted event, with labels that identify it elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Exemplar {
    pub labels: Labels,
    pub value: f64,
    /// Seconds since the epoch.
    pub time: f64,
}

impl MetricFamily {
    pub fn new(name: &'static str, help: &'static str, kind: MetricKind) -> MetricFamily {
        MetricFamily { name, help, kind, samples: Vec::new() }
    }

    pub fn counter(name: &'static str, help: &'static str) -> MetricFamily {
        MetricFamily::new(name, help, MetricKind::Counter)
    }

    pub fn gauge(name: &'static str, help: &'static str) -> MetricFamily {
        MetricFamily::new(name, help, MetricKind::Gauge)
    }

    pub fn count(&mut self, labels: Labels, count: u64) {
        self.samples.push(MetricSample { labels, value: MetricValue::Count(count), exemplar: None });
    }

    pub fn number(&mut self, labels: Labels, number: f64) {
        self.samples.push(MetricSample { labels, value: MetricValue::Number(number), exemplar: None });
    }

    /// Adds a number without labels and returns the family.
    pub fn single(mut self, number: f64) -> MetricFamily {
        self.number(Vec::new(), number);
        self
    }
}
