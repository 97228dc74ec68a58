//! A dashboard and the answers to its queries, as SVG: each panel at its place, with its title, chart and legend.
//!
//! plotters draws: it is a dependency of xtask alone, and takes three seconds of CPU time to compile. Its coordinates are whole
//! pixels, so that everything is drawn twice as large as it is shown.

use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::answers::{Answers, Series};
use super::chart::{self, Line};
use super::definition::{Dashboard, GridPos, Panel};

pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const CELL: (u32, u32) = (100, 58);
const MARGIN: u32 = 20;
const HEADER: u32 = 92;
const LEGEND_ROW: u32 = 34;
/// More series have no place in the legend.
const LEGEND_ROWS: u32 = 3;

const BACKGROUND: RGBColor = RGBColor(15, 23, 36);
const PANEL: RGBColor = RGBColor(24, 34, 51);
pub const GRID: RGBColor = RGBColor(44, 57, 78);
pub const DIM: RGBColor = RGBColor(147, 164, 189);
const BRIGHT: RGBColor = RGBColor(226, 234, 245);
const COLOURS: [RGBColor; 10] = [
    RGBColor(126, 231, 135),
    RGBColor(242, 204, 96),
    RGBColor(121, 192, 255),
    RGBColor(255, 159, 90),
    RGBColor(210, 168, 255),
    RGBColor(255, 123, 114),
    RGBColor(86, 212, 221),
    RGBColor(247, 182, 210),
    RGBColor(184, 196, 120),
    RGBColor(160, 160, 255),
];

const FONT: &str = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif";

/// Text of axes and legends.
pub fn text(size: u32, colour: &'static RGBColor) -> TextStyle<'static> {
    TextStyle::from((FONT, size)).color(colour)
}

fn title(size: u32) -> TextStyle<'static> {
    TextStyle::from((FONT, size, FontStyle::Bold)).color(&BRIGHT)
}

/// Draws all panels below a heading.
pub fn svg(dashboard: &Dashboard, answers: &Answers) -> Result<String> {
    let cells = |end: fn(&GridPos) -> u32| dashboard.panels.iter().map(|panel| end(&panel.grid_pos)).max();
    let columns = cells(|at| at.x + at.w).unwrap_or(0);
    let rows = cells(|at| at.y + at.h).unwrap_or(0);
    let size = (columns * CELL.0 + 2 * MARGIN, rows * CELL.1 + HEADER + MARGIN);
    let mut out = String::new();
    {
        let root = SVGBackend::with_string(&mut out, size).into_drawing_area();
        root.fill(&BACKGROUND)?;
        heading(&root, dashboard, answers, size.0)?;
        for panel in &dashboard.panels {
            let at = panel.grid_pos;
            let corner = (at.x * CELL.0 + MARGIN, at.y * CELL.1 + HEADER);
            let area = root.clone().shrink(corner, (at.w * CELL.0, at.h * CELL.1));
            draw_panel(&area.margin(7, 7, 7, 7), panel, &lines(dashboard, panel, answers)?, answers)?;
        }
        root.present()?;
    }
    // Shown at half its size.
    let full = format!("width=\"{}\" height=\"{}\"", size.0, size.1);
    let half = format!("width=\"{}\" height=\"{}\" role=\"img\"", size.0 / 2, size.1 / 2);
    Ok(out.replacen(&full, &half, 1))
}

fn heading(root: &Area, dashboard: &Dashboard, answers: &Answers, width: u32) -> Result<()> {
    let left = i32::try_from(MARGIN)? + 8;
    root.draw_text(&dashboard.title, &title(40), (left, 28))?;
    let clock = |time: u64| format!("{:02}:{:02}", time / 3600 % 24, time / 60 % 60);
    let span = format!(
        "Prometheus {}, {} – {} UTC",
        answers.prometheus,
        clock(answers.span.start),
        clock(answers.span.end)
    );
    let right = text(28, &DIM).pos(Pos::new(HPos::Right, VPos::Top));
    root.draw_text(&span, &right, (i32::try_from(width)? - left, 36))?;
    Ok(())
}

/// The series of a panel with their legends, in the order of the legends.
fn lines<'a>(dashboard: &Dashboard, panel: &Panel, answers: &'a Answers) -> Result<Vec<Line<'a>>> {
    let mut found: Vec<(String, &'a Series)> = Vec::new();
    for target in &panel.targets {
        let series = answers.series(&dashboard.query(target)?).unwrap_or_default();
        let series = series.iter().filter(|series| series.values.iter().any(Option::is_some));
        found.extend(series.map(|series| (target.legend(&series.labels), series)));
    }
    found.sort_by(|(left, _), (right, _)| left.cmp(right));
    let colours = COLOURS.iter().cycle();
    let line = |((legend, series), colour): ((String, &'a Series), &RGBColor)| Line {
        legend,
        series,
        colour: *colour,
    };
    Ok(found.into_iter().zip(colours).map(line).collect())
}

fn draw_panel(area: &Area, panel: &Panel, lines: &[Line], answers: &Answers) -> Result<()> {
    area.fill(&PANEL)?;
    let (width, height) = area.dim_in_pixel();
    area.draw_text(&panel.title, &title(30), (22, 18))?;
    let reason = panel.obstacle().or_else(|| lines.is_empty().then(|| "no data".to_owned()));
    if let Some(reason) = reason {
        let centre = text(32, &DIM).pos(Pos::new(HPos::Center, VPos::Center));
        area.draw_text(&reason, &centre, (i32::try_from(width / 2)?, i32::try_from(height / 2)?))?;
        return Ok(());
    }
    let legend = legend(area, lines)?;
    let below = height - 12 - legend.len() as u32 * LEGEND_ROW;
    let (top, bottom) = area.split_vertically(below);
    chart::draw(&top.margin(64, 8, 20, 30), panel, lines, answers.span)?;
    for (row, entries) in legend.iter().enumerate() {
        let y = i32::try_from(row as u32 * LEGEND_ROW)?;
        for (x, label, colour) in entries {
            bottom.draw(&Rectangle::new([(*x, y + 11), (x + 26, y + 17)], colour.filled()))?;
            bottom.draw_text(label, &text(24, &DIM), (x + 36, y))?;
        }
    }
    Ok(())
}

/// An entry of the legend: its place in the row, its text and its colour.
type Entry = (i32, String, RGBColor);

/// The legend in rows that fit the panel. What does not fit is counted in the last entry.
fn legend(area: &Area, lines: &[Line]) -> Result<Vec<Vec<Entry>>> {
    let width = i32::try_from(area.dim_in_pixel().0)? - 24;
    let mut rows: Vec<Vec<Entry>> = vec![Vec::new()];
    let mut x = 24;
    for (index, line) in lines.iter().enumerate() {
        let label = shortened(line.legend.trim());
        let length = 36 + 32 + text_width(&label);
        if x + length > width && x > 24 {
            if rows.len() as u32 == LEGEND_ROWS {
                let last = rows.last_mut().and_then(|row| row.last_mut());
                if let Some((_, label, _)) = last {
                    *label = format!("and {} more", lines.len() - index + 1);
                }
                return Ok(rows);
            }
            rows.push(Vec::new());
            x = 24;
        }
        rows.last_mut().into_iter().for_each(|row| row.push((x, label.clone(), line.colour)));
        x += length;
    }
    Ok(rows)
}

/// About the width of a legend's text. plotters has no fonts, and counts the same for each letter.
fn text_width(text: &str) -> i32 {
    // 24 in plotters' measure.
    const FONT_SIZE: f64 = 24.0 / 1.24;
    let em = |letter: char| match letter {
        'i' | 'j' | 'l' | '.' | ',' | ':' | '/' | ' ' => 0.31,
        'f' | 'r' | 't' | '-' => 0.39,
        'm' | 'w' | 'A'..='Z' => 0.8,
        _ => 0.6,
    };
    (text.chars().map(em).sum::<f64>() * FONT_SIZE).ceil() as i32
}

/// The longest legend fits a panel of half the width.
fn shortened(legend: &str) -> String {
    const LONGEST: usize = 70;
    if legend.chars().count() <= LONGEST {
        return legend.to_owned();
    }
    legend.chars().take(LONGEST - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A panel on top of the others, with what `more` sets.
    fn panel(title: &str, source: &str, more: serde_json::Value) -> serde_json::Value {
        let mut panel = serde_json::json!({
            "title": title,
            "type": "timeseries",
            "datasource": { "type": source },
            "gridPos": { "x": 0, "y": 0, "w": 12, "h": 8 },
            "targets": [{ "expr": title, "legendFormat": "{{pod}} {{container}}" }],
        });
        if let (Some(panel), Some(more)) = (panel.as_object_mut(), more.as_object()) {
            panel.extend(more.clone());
        }
        panel
    }

    fn drawn(panels: &[serde_json::Value], queries: &serde_json::Value) -> String {
        let dashboard =
            serde_json::json!({ "title": "a <b>", "panels": panels, "templating": { "list": [] } });
        let answers = serde_json::json!({
            "prometheus": "2.42.0", "start": 1_800_000_000, "end": 1_800_000_004, "queries": queries,
        });
        svg(&serde_json::from_value(dashboard).unwrap(), &serde_json::from_value(answers).unwrap()).unwrap()
    }

    fn texts(svg: &str) -> Vec<&str> {
        let texts = svg.split("<text").skip(1).filter_map(|rest| rest.split_once('>'));
        texts.filter_map(|(_, rest)| Some(rest.split_once("</text>")?.0.trim())).collect()
    }

    #[test]
    fn an_answer_becomes_an_axis_a_line_and_a_legend() {
        let defaults = serde_json::json!({ "unit": "bytes", "min": 0 });
        let panel =
            panel("memory", "prometheus", serde_json::json!({ "fieldConfig": { "defaults": defaults } }));
        let series =
            serde_json::json!({ "labels": { "pod": "basket" }, "values": [0, 4_194_304, 8_388_608] });
        let picture = drawn(&[panel], &serde_json::json!({ "memory": [series] }));
        let texts = texts(&picture);
        for text in ["memory", "08:00", "0 MiB", "2 MiB", "8 MiB", "basket"] {
            assert!(texts.contains(&text), "{text}: {texts:?}");
        }
        let lines: Vec<_> = picture.split("<polyline").skip(1).collect();
        assert!(lines.iter().any(|line| line.contains("#7EE787")), "{lines:?}");
    }

    #[test]
    fn what_cannot_be_drawn_has_its_reason() {
        let panels = [
            panel("none", "prometheus", serde_json::json!({})),
            panel("logs", "loki", serde_json::json!({})),
        ];
        let picture = drawn(&panels, &serde_json::json!({ "none": [] }));
        let texts = texts(&picture);
        assert!(texts.contains(&"no data") && texts.contains(&"needs loki: not drawn here"), "{texts:?}");
    }

    #[test]
    fn names_cannot_end_their_element() {
        let series = serde_json::json!({ "labels": { "pod": "<script>&\"" }, "values": [1, 2, null] });
        let picture = drawn(
            &[panel("<i>", "prometheus", serde_json::json!({}))],
            &serde_json::json!({ "<i>": [series] }),
        );
        assert!(picture.contains("&lt;script&gt;&amp;") && !picture.contains("<script"), "{picture}");
        assert!(!picture.contains("<i>") && !picture.contains("<b>"), "{picture}");
    }

    #[test]
    fn a_legend_that_does_not_fit_says_how_many_more_there_are() {
        let series = |at: u32| {
            let pod = format!("a-rather-long-name-of-a-pod-{at:02}");
            serde_json::json!({ "labels": { "pod": pod }, "values": [1, 1, 1] })
        };
        let series: Vec<_> = (0..20).map(series).collect();
        let picture = drawn(
            &[panel("many", "prometheus", serde_json::json!({}))],
            &serde_json::json!({ "many": series }),
        );
        let texts = texts(&picture);
        let named = texts.iter().filter(|text| text.starts_with("a-rather")).count();
        assert!(texts.contains(&format!("and {} more", 20 - named).as_str()), "{texts:?}");
    }
}
