//! Lines that are longer than the screen.

use podopsy_model::text::visible;
use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Paragraph, Wrap};

pub struct Pager {
    title: String,
    lines: Vec<String>,
    first: usize,
    /// Lines of the last drawn screen.
    height: usize,
}

impl Pager {
    pub fn new(title: &str, lines: Vec<String>) -> Pager {
        let lines = lines.iter().map(|line| visible(line)).collect();
        Pager { title: visible(title), lines, first: 0, height: 0 }
    }

    /// Whether the key closes it.
    pub fn handle(&mut self, code: KeyCode) -> bool {
        let page = self.height.max(1);
        let first = match code {
            KeyCode::Char('q' | '?') | KeyCode::Esc | KeyCode::Backspace => return true,
            KeyCode::Down | KeyCode::Char('j') | KeyCode::Enter => self.first + 1,
            KeyCode::Up | KeyCode::Char('k') => self.first.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.first + page,
            KeyCode::PageUp => self.first.saturating_sub(page),
            KeyCode::Home => 0,
            KeyCode::End => usize::MAX,
            _ => self.first,
        };
        self.first = first.min(self.lines.len().saturating_sub(page));
        false
    }

    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let areas = [Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)];
        let [top, main, bottom] = Layout::vertical(areas).areas(frame.area());
        self.height = usize::from(main.height);
        frame.render_widget(Line::styled(self.title.as_str(), Modifier::BOLD), top);
        let shown = self.lines.iter().skip(self.first).take(self.height);
        let shown: Vec<Line<'_>> = shown.map(|line| Line::raw(line.as_str())).collect();
        frame.render_widget(Paragraph::new(shown).wrap(Wrap { trim: false }), main);
        let last = (self.first + self.height).min(self.lines.len());
        let hint =
            format!("lines {} to {last} of {}; q closes", (self.first + 1).min(last), self.lines.len());
        frame.render_widget(Line::styled(hint, Style::new().add_modifier(Modifier::DIM)), bottom);
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    #[test]
    fn it_scrolls_within_its_lines_and_escapes_them() {
        let mut pager = Pager::new("t\x1b[2J", (1..=9).map(|n| format!("line {n}\x07")).collect());
        let mut terminal = Terminal::new(TestBackend::new(30, 5)).unwrap();
        let mut drawn = |pager: &mut Pager| {
            terminal.draw(|frame| pager.draw(frame)).unwrap();
            let buffer = terminal.backend().buffer();
            let line = |y| (0..30).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
            (0..5).map(line).collect::<Vec<String>>()
        };
        assert_eq!(drawn(&mut pager)[..2], ["t\\x1b[2J", "line 1\\x07"]);
        assert!(!pager.handle(KeyCode::End));
        let last = drawn(&mut pager);
        assert_eq!(last[1..], ["line 7\\x07", "line 8\\x07", "line 9\\x07", "lines 7 to 9 of 9; q closes"]);
        assert!(!pager.handle(KeyCode::Home) && pager.handle(KeyCode::Esc));
    }
}
