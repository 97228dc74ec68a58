//! What a page of metrics is made of, whatever format it is written in.

/// Names and values; names are our own, values are escaped when they are written.
pub type Labels = Vec<(&'static str, String)>;

/// Samples of one name.
#[derive(Clone, Debug)]
pub struct Family {
    /// Without a counter's `_total`, which the formats put in different places.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

#[derive(Clone, Debug)]
pub struct Sample {
    pub labels: Labels,
    pub value: Value,
    /// Of a counter; OpenMetrics alone can say it.
    pub exemplar: Option<Exemplar>,
}

#[derive(Clone, Debug)]
pub enum Value {
    Count(u64),
    Number(f64),
    Histogram(Histogram),
}

/// Counts by upper bound, not cumulated.
#[derive(Clone, Debug)]
pub struct Histogram {
    /// Each is above the one before it, in seconds; what is above all of them is counted in `above`.
    pub buckets: Vec<(f64, u64)>,
    pub above: u64,
    /// Seconds; None: nobody added them up, and then the formats leave it out.
    pub sum: Option<f64>,
}

/// An instance of what was counted, to be looked up elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Exemplar {
    pub labels: Labels,
    pub value: f64,
    /// Seconds since the epoch.
    pub time: f64,
}

impl Family {
    pub fn new(name: &'static str, help: &'static str, kind: Kind) -> Family {
        Family { name, help, kind, samples: Vec::new() }
    }

    pub fn counter(name: &'static str, help: &'static str) -> Family {
        Family::new(name, help, Kind::Counter)
    }

    pub fn gauge(name: &'static str, help: &'static str) -> Family {
        Family::new(name, help, Kind::Gauge)
    }

    pub fn count(&mut self, labels: Labels, count: u64) {
        self.samples.push(Sample { labels, value: Value::Count(count), exemplar: None });
    }

    pub fn number(&mut self, labels: Labels, number: f64) {
        self.samples.push(Sample { labels, value: Value::Number(number), exemplar: None });
    }

    /// The same, where there is nothing to tell apart.
    pub fn single(mut self, number: f64) -> Family {
        self.number(Vec::new(), number);
        self
    }
}
