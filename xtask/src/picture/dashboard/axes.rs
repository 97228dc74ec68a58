//! The axes of a chart: what their ends are, and where they are marked.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;

use super::answers::Span;
use super::chart::Line;
use super::definition::Panel;
use super::unit::{Scale, Unit};

/// In seconds: the one unit that the dashboard has on a logarithmic axis.
const LOGARITHMIC_TICKS: [f64; 6] = [1.0, 10.0, 60.0, 600.0, 3600.0, 36_000.0];
/// A logarithmic axis has at least these seconds.
const LEAST_SPAN: Range<f64> = 10.0..60.0;

/// The axis of values, in its scale; where it is logarithmic, in the query's unit.
#[derive(Clone)]
pub struct Values {
    pub range: Range<f64>,
    pub scale: Scale,
    unit: Unit,
    is_logarithmic: bool,
}

impl Values {
    /// The axis on which all series of a panel fit.
    pub fn of(panel: &Panel, lines: &[Line]) -> Values {
        let values = || lines.iter().flat_map(|line| line.series.values.iter().flatten().copied());
        let defaults = &panel.field_config.defaults;
        if panel.is_logarithmic() {
            let positive = || values().filter(|value| *value > 0.0);
            let low = positive().fold(LEAST_SPAN.start, f64::min).max(LOGARITHMIC_TICKS[0]);
            let high = positive().fold(LEAST_SPAN.end, f64::max) * 1.5;
            let scale = Scale { factor: 1.0, name: "" };
            return Values { range: low..high, scale, unit: defaults.unit, is_logarithmic: true };
        }
        let low = defaults.min.unwrap_or_else(|| values().fold(f64::INFINITY, f64::min));
        let most = values().fold(low, f64::max);
        // A flat line at the bottom still has an axis.
        let high = if most > low { low + (most - low) * 1.08 } else { low + 1.0 };
        let scale = defaults.unit.scale(high);
        let range = low / scale.factor..high / scale.factor;
        Values { range, scale, unit: defaults.unit, is_logarithmic: false }
    }

    /// The text at a tick.
    pub fn label(&self, value: f64) -> String {
        if self.is_logarithmic { self.unit.label(value) } else { self.scale.label(value) }
    }
}

impl Ranged for Values {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        if !self.is_logarithmic {
            return RangedCoordf64::from(self.range()).map(value, limit);
        }
        let (low, high) = (self.range.start.ln(), self.range.end.ln());
        RangedCoordf64::from(low..high).map(&value.max(self.range.start).ln(), limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if !self.is_logarithmic {
            return RangedCoordf64::from(self.range()).key_points(hint);
        }
        if hint.bold_points() == 0 {
            return Vec::new();
        }
        LOGARITHMIC_TICKS.into_iter().filter(|tick| self.range.contains(tick)).collect()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Values {}

/// The axis of times, in seconds since 1970: marked at full minutes, with the time of the day (UTC).
pub struct Times(pub Span);

impl Ranged for Times {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        RangedCoordf64::from(self.range()).map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        // The lines between those with a text are not drawn.
        if hint.bold_points() == 0 {
            return Vec::new();
        }
        let minutes = (self.0.start.next_multiple_of(60)..=self.0.end).step_by(60);
        minutes.map(|time| time as f64).collect()
    }

    fn range(&self) -> Range<f64> {
        self.0.start as f64..self.0.end as f64
    }
}

impl ValueFormatter<f64> for Times {
    fn format(time: &f64) -> String {
        let minutes = *time as u64 / 60;
        format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logarithmic_axis_gives_each_factor_the_same_height() {
        let scale = Scale { factor: 1.0, name: "" };
        let axis = Values { range: 1.0..10_000.0, scale, unit: Unit::S, is_logarithmic: true };
        let at = |value: f64| axis.map(&value, (0, 400));
        assert_eq!([0.0, 1.0, 10.0, 100.0, 10_000.0].map(at), [0, 0, 100, 200, 400]);
        assert_eq!(axis.key_points(10), [1.0, 10.0, 60.0, 600.0, 3600.0]);
    }

    #[test]
    fn the_times_are_marked_at_minutes() {
        let marks = Times(Span { start: 1_800_000_002, end: 1_800_000_122 }).key_points(10);
        let texts: Vec<String> = marks.iter().map(Times::format).collect();
        assert_eq!(texts, ["08:01", "08:02"]);
    }
}
