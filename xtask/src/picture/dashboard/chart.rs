//! The chart of a panel: axes, series, thresholds.

use anyhow::Result;
use plotters::prelude::*;

use super::answers::{STEP, Series, Span};
use super::axes::{Times, Values};
use super::definition::{DrawStyle, Panel};
use super::picture::{Area, DIM, GRID, text};
use super::unit::Scale;

/// A series as it is drawn.
pub struct Line<'a> {
    pub legend: String,
    pub series: &'a Series,
    pub colour: RGBColor,
}

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Times, Values>>;

/// Bars of several series may be at the same time.
const BAR_OPACITY: f64 = 0.75;
const THRESHOLD: RGBColor = RGBColor(255, 123, 114);

/// Draws it, with space for the axes' texts.
pub fn draw(area: &Area, panel: &Panel, lines: &[Line], span: Span) -> Result<()> {
    let axis = Values::of(panel, lines);
    let scale = axis.scale;
    let mut chart = ChartBuilder::on(area)
        .x_label_area_size(44)
        .y_label_area_size(130)
        .build_cartesian_2d(Times(span), axis.clone())?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .label_style(text(24, &DIM))
        .y_labels(6)
        .y_label_formatter(&|value| axis.label(*value))
        .draw()?;
    for line in lines {
        draw_line(&mut chart, panel.draw_style(), line, span, scale)?;
    }
    let thresholds = panel.thresholds().into_iter().map(|value| value / scale.factor);
    for value in thresholds.filter(|value| axis.range.contains(value)) {
        let ends = [(span.start as f64, value), (span.end as f64, value)];
        chart.draw_series(DashedLineSeries::new(ends, 12, 10, THRESHOLD.stroke_width(3)))?;
    }
    Ok(())
}

fn draw_line(chart: &mut Chart, style: DrawStyle, line: &Line, span: Span, scale: Scale) -> Result<()> {
    if style == DrawStyle::Bars {
        let colour = line.colour.mix(BAR_OPACITY).filled();
        let bar = |[left, right, value]: [f64; 3]| Rectangle::new([(left, 0.0), (right, value)], colour);
        chart.draw_series(bars(line.series, span, scale).into_iter().map(bar))?;
        return Ok(());
    }
    for run in runs(line.series, span, scale) {
        match run.as_slice() {
            [point] => chart.draw_series([Circle::new(*point, 4, line.colour.filled())])?,
            _ => chart.draw_series(LineSeries::new(run, line.colour.stroke_width(4)))?,
        };
    }
    Ok(())
}

/// The samples of a series, by time.
fn points(series: &Series, span: Span, scale: Scale) -> impl Iterator<Item = (f64, f64)> {
    let values = series.values.iter().enumerate();
    values.filter_map(move |(step, value)| Some((span.time(step), (*value)? / scale.factor)))
}

/// Left end, right end and height of each bar. Side by side, those that differ by less than a hundredth are one.
fn bars(series: &Series, span: Span, scale: Scale) -> Vec<[f64; 3]> {
    let half = STEP as f64 / 2.0;
    let mut bars: Vec<[f64; 3]> = Vec::new();
    for (time, value) in points(series, span, scale).filter(|(_, value)| *value > 0.0) {
        match bars.last_mut() {
            Some([_, right, height]) if *right == time - half && (*height - value).abs() < 0.01 * value => {
                *right = time + half;
            }
            _ => bars.push([time - half, time + half, value]),
        }
    }
    bars
}

/// The samples without a gap in between; of equal ones in a row, the first and the last.
fn runs(series: &Series, span: Span, scale: Scale) -> Vec<Vec<(f64, f64)>> {
    let mut runs: Vec<Vec<(f64, f64)>> = Vec::new();
    let mut last = f64::NEG_INFINITY;
    for (time, value) in points(series, span, scale) {
        if time - last > STEP as f64 {
            runs.push(Vec::new());
        }
        last = time;
        let Some(run) = runs.last_mut() else { continue };
        if let [.., (_, before), (end, middle)] = run.as_mut_slice()
            && *before == value
            && *middle == value
        {
            *end = time;
        } else {
            run.push((time, value));
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Span = Span { start: 1_800_000_000, end: 1_800_000_120 };

    fn series(values: &[Option<f64>]) -> Series {
        Series { labels: [].into(), values: values.to_vec() }
    }

    #[test]
    fn a_gap_ends_a_run_and_equal_values_are_drawn_once() {
        let values = [Some(1.0), Some(1.0), Some(1.0), Some(4.0), None, Some(2.0)];
        let scale = Scale { factor: 2.0, name: "" };
        let at = |step| SPAN.time(step);
        let expected = [vec![(at(0), 0.5), (at(2), 0.5), (at(3), 2.0)], vec![(at(5), 1.0)]];
        assert_eq!(runs(&series(&values), SPAN, scale), expected);
    }

    #[test]
    fn about_equal_values_side_by_side_are_one_bar() {
        let values = [Some(0.0), Some(1.0), Some(1.001), Some(2.0), None, Some(2.0)];
        let second = |seconds: u64| (SPAN.start + seconds) as f64;
        let expected =
            [[second(1), second(5), 1.0], [second(5), second(7), 2.0], [second(9), second(11), 2.0]];
        assert_eq!(bars(&series(&values), SPAN, Scale { factor: 1.0, name: "" }), expected);
    }
}
