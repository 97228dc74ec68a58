//! The table of containers.

use podopsy_model::text::visible;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Row, Table, TableState};

use crate::app::App;
use crate::cells::Column;
use crate::data::ContainerRow;

/// From here on memory is shown as near its limit.
const NEAR_PERCENT: f64 = 90.0;
const NAME_MIN: u16 = 12;
const GAP: u16 = 2;

pub fn draw(app: &mut App, frame: &mut Frame<'_>) {
    let notes = app.snapshot.notes.len().min(3) as u16;
    let areas =
        [Constraint::Length(1), Constraint::Length(notes), Constraint::Fill(1), Constraint::Length(1)];
    let [top, middle, main, bottom] = Layout::vertical(areas).areas(frame.area());
    frame.render_widget(Line::styled(title(app), Modifier::BOLD), top);
    let dim = Style::new().add_modifier(Modifier::DIM);
    let lines: Vec<Line<'_>> =
        app.snapshot.notes.iter().map(|note| Line::styled(visible(note), dim)).collect();
    frame.render_widget(Text::from(lines), middle);
    draw_rows(app, frame, main);
    frame.render_widget(Line::styled(status(app), dim), bottom);
}

fn title(app: &App) -> String {
    let time = app.snapshot.time.strftime("%Y-%m-%d %H:%M:%SZ");
    let source = if app.snapshot.is_live { "live" } else { "history" };
    let unit = if app.is_by_pod { "pod" } else { "container" };
    let plural = if app.rows.len() == 1 { "" } else { "s" };
    let order = if app.is_reversed { " reversed" } else { "" };
    format!("{time} {source}  {} {unit}{plural}  by {}{order}", app.rows.len(), app.sort.as_str())
}

fn status(app: &App) -> String {
    match (&app.message, app.is_filter_edited) {
        (_, true) => format!("filter: {}_", visible(&app.filter)),
        (Some(message), _) => visible(message),
        (None, false) if app.filter.is_empty() => {
            "? help  Enter timeline  a autopsy  f flame graph  s sort  / filter  q quit".to_owned()
        }
        (None, false) => format!("filter: {}  Esc removes it", visible(&app.filter)),
    }
}

fn draw_rows(app: &App, frame: &mut Frame<'_>, area: Rect) {
    let columns = fitting(&columns_of(app), &app.rows, area.width);
    let header = columns.iter().map(|(column, _)| cell(*column, column.title().to_owned()));
    let header = Row::new(header).style(Style::new().add_modifier(Modifier::BOLD));
    let rows = app.rows.iter().map(|row| {
        let cells = columns.iter().map(|&(column, width)| {
            cell(column, shortened(column, row, width)).style(style(column, row, app.has_colour))
        });
        Row::new(cells)
    });
    let widths = columns.iter().map(|&(_, width)| Constraint::Length(width));
    let table = Table::new(rows, widths)
        .header(header)
        .column_spacing(GAP)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = TableState::new().with_selected(app.selected_index());
    frame.render_stateful_widget(table, area, &mut state);
}

fn cell(column: Column, text: String) -> Cell<'static> {
    let alignment = match column {
        column if column.is_name() => Alignment::Left,
        Column::Trend => Alignment::Left,
        _ => Alignment::Right,
    };
    Cell::from(Text::from(text).alignment(alignment))
}

fn style(column: Column, row: &ContainerRow, has_colour: bool) -> Style {
    let is_near = row.memory_percent().is_some_and(|percent| percent >= NEAR_PERCENT);
    let is_conspicuous = match column {
        Column::Memory | Column::Percent => is_near,
        Column::LimitIn => row.seconds_to_limit().is_some_and(|seconds| seconds < 600),
        Column::Kills => row.oom_kills.is_some_and(|kills| kills > 0),
        Column::Throttled => row.throttled_percent.is_some_and(|share| share >= 25.0),
        Column::Dns => row.dns_failures_per_second.is_some_and(|rate| rate > 0.0),
        _ => false,
    };
    match (is_conspicuous, has_colour) {
        (true, true) => Style::new().fg(Color::Red).add_modifier(Modifier::BOLD),
        (true, false) => Style::new().add_modifier(Modifier::BOLD),
        (false, _) => Style::new(),
    }
}

/// Columns that have something to show.
fn columns_of(app: &App) -> Vec<Column> {
    let has_nodes = app.rows.iter().any(|row| row.node.is_some());
    let is_shown = |column: &Column| match column {
        Column::Node => has_nodes,
        Column::Container => !app.is_by_pod,
        _ => true,
    };
    Column::ALL.into_iter().filter(is_shown).collect()
}

/// The columns that fit, with their widths. First columns are left out, then names are cut.
fn fitting(columns: &[Column], rows: &[ContainerRow], width: u16) -> Vec<(Column, u16)> {
    let wanted = |column: Column| {
        let longest = rows.iter().map(|row| columns_wide(&visible(&column.text(row)))).max().unwrap_or(0);
        longest.max(columns_wide(column.title()))
    };
    let least = |column: Column| if column.is_name() { wanted(column).min(NAME_MIN) } else { wanted(column) };
    let mut fitting: Vec<(Column, u16)> = columns.iter().map(|&column| (column, least(column))).collect();
    while fitting.len() > 1 && total(&fitting) > u32::from(width) {
        fitting.retain({
            let last = fitting.iter().map(|(column, _)| column.rank()).max();
            move |(column, _)| Some(column.rank()) != last
        });
    }
    let mut left = u32::from(width).saturating_sub(total(&fitting));
    for (column, width) in fitting.iter_mut().filter(|(column, _)| column.is_name()) {
        let more = u32::from(wanted(*column) - *width).min(left);
        left -= more;
        *width += more as u16;
    }
    fitting
}

fn total(columns: &[(Column, u16)]) -> u32 {
    let gaps = u32::from(GAP) * columns.len().saturating_sub(1) as u32;
    columns.iter().map(|(_, width)| u32::from(*width)).sum::<u32>() + gaps
}

fn columns_wide(text: &str) -> u16 {
    u16::try_from(Line::raw(text).width()).unwrap_or(u16::MAX)
}

/// A name is cut in its middle: the ends of pods' names differ.
fn shortened(column: Column, row: &ContainerRow, width: u16) -> String {
    let text = visible(&column.text(row));
    if !column.is_name() || columns_wide(&text) <= width {
        return text;
    }
    let kept = usize::from(width).saturating_sub(1);
    let (start, end) = (kept - kept / 2, kept / 2);
    let from = text.char_indices().rev().nth(end.saturating_sub(1)).map_or(0, |(at, _)| at);
    let start: String = text.chars().take(start).collect();
    let end = if end == 0 { "" } else { &text[from..] };
    format!("{start}…{end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Snapshot;
    use crate::order::SortKey;
    use crate::testing::{MIB, drawn, row};

    fn app() -> App {
        let mut app = App::new(SortKey::Percent, false, false);
        let leaking = ContainerRow {
            growth_bytes_per_second: Some(MIB as f64 / 10.0),
            oom_kills: Some(7),
            dns_failures_per_second: Some(2.5),
            throttled_percent: Some(30.0),
            memory_samples: (1..=60).map(|n| n * MIB).collect(),
            ..row("checkout-api-7d9c5b6f4-x2v8p", "app", 60)
        };
        app.set_snapshot(Snapshot {
            time: "2026-03-01T03:04:05Z".parse().unwrap(),
            is_live: true,
            rows: vec![row("pricing", "app", 3), leaking],
            notes: vec!["no agent answers: DNS and kills are not known".into()],
        });
        app
    }

    #[test]
    fn a_wide_screen_has_all_columns() {
        let lines = drawn(&mut app(), (140, 7));
        assert_eq!(
            lines,
            [
                "2026-03-01 03:04:05Z live  2 containers  by percent",
                "no agent answers: DNS and kills are not known",
                "POD                                CONTAINER   CPU  THROTTLED  MEMORY   LIMIT     %  TREND         LIMIT IN  DNS ERR/S  KILLS  RESTARTS",
                "shop/checkout-api-7d9c5b6f4-x2v8p  app        250m       30 %  60.0Mi  64.0Mi  94 %  ▁▂▂▃▃▄▄▅▅▆▇▇       40s        2.5      7         2",
                "shop/pricing                       app        250m          -   3.0Mi  64.0Mi   5 %                       -          -      0         2",
                "",
                "? help  Enter timeline  a autopsy  f flame graph  s sort  / filter  q quit",
            ]
        );
    }

    #[test]
    fn a_narrow_screen_cuts_names_and_leaves_columns_out() {
        let lines = drawn(&mut app(), (40, 7));
        assert_eq!(lines[2], "POD             CPU  MEMORY     %  KILLS");
        assert_eq!(lines[3], "shop/c…-x2v8p  250m  60.0Mi  94 %      7");
        for width in [1, 2, 5, 12, 13, 20, 60, 80, 100] {
            drawn(&mut app(), (width, 3));
        }
    }

    #[test]
    fn names_cannot_write_to_the_terminal() {
        let mut app = app();
        let hostile = row("a\x1b[2J\n\u{202e}<b>", "app", 1);
        app.set_snapshot(Snapshot { rows: vec![hostile], ..Snapshot::default() });
        let text = drawn(&mut app, (160, 6)).join("\n");
        assert!(text.contains("shop/a\\x1b[2J\\x0a\\u{202e}<b>"), "{text}");
    }
}
