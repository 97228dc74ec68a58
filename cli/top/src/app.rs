//! The state of the screen, and what each key does.

use jiff::SignedDuration;
use podopsy_model::profile::Profile;
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout};

use crate::data::{ContainerRow, RowKey, Snapshot, by_pod};
use crate::flame::FlameGraph;
use crate::order::{self, SortKey};
use crate::pager::Pager;
use crate::{help, table};

/// What the user asks for that needs data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Quit,
    Timeline(RowKey),
    Autopsy(RowKey),
    /// Profiles until the next [`Request::Close`].
    Flame(RowKey),
    /// The table is back.
    Close,
    /// To an earlier or a later time.
    Move(SignedDuration),
    Now,
}

enum View {
    Table,
    Help(Pager),
    Text(Pager),
    Flame(FlameGraph),
}

/// The screen's state.
pub struct App {
    pub(crate) snapshot: Snapshot,
    /// The rows as shown: by pod or not, filtered and sorted.
    pub(crate) rows: Vec<ContainerRow>,
    pub(crate) sort: SortKey,
    pub(crate) is_reversed: bool,
    pub(crate) is_by_pod: bool,
    pub(crate) filter: String,
    pub(crate) is_filter_edited: bool,
    /// Stays on its container while rows move.
    selected: Option<RowKey>,
    /// One line above the table, until the next key.
    pub(crate) message: Option<String>,
    pub(crate) has_colour: bool,
    view: View,
}

const STEP: SignedDuration = SignedDuration::from_secs(10);
const LONG_STEP: SignedDuration = SignedDuration::from_mins(5);
const FILTER_MAX: usize = 100;

impl App {
    pub fn new(sort: SortKey, is_by_pod: bool, has_colour: bool) -> App {
        App {
            snapshot: Snapshot::default(),
            rows: Vec::new(),
            sort,
            is_reversed: false,
            is_by_pod,
            filter: String::new(),
            is_filter_edited: false,
            selected: None,
            message: None,
            has_colour,
            view: View::Table,
        }
    }

    pub fn set_snapshot(&mut self, snapshot: Snapshot) {
        self.snapshot = snapshot;
        self.arrange();
    }

    /// Shows lines instead of the table.
    pub fn show_text(&mut self, title: &str, lines: Vec<String>) {
        self.view = View::Text(Pager::new(title, lines));
    }

    /// Shows a flame graph, or the next one of the same container.
    pub fn show_profile(&mut self, title: &str, profile: &Profile) {
        match &mut self.view {
            View::Flame(graph) => graph.update(title, profile),
            _ => self.view = View::Flame(FlameGraph::new(title, profile)),
        }
    }

    /// A line for the user, such as why a view cannot be shown.
    pub fn show_message(&mut self, message: String) {
        self.message = Some(message);
    }

    /// Whether the table is on the screen.
    pub fn is_table(&self) -> bool {
        matches!(self.view, View::Table)
    }

    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let has_colour = self.has_colour;
        match &mut self.view {
            View::Table => table::draw(self, frame),
            View::Help(pager) | View::Text(pager) => pager.draw(frame),
            View::Flame(graph) => {
                let [main] = Layout::vertical([Constraint::Fill(1)]).areas(frame.area());
                graph.draw(frame.buffer_mut(), main, has_colour);
            }
        }
    }

    /// What a key does to the state, and what it asks for.
    pub fn handle(&mut self, key: KeyEvent) -> Option<Request> {
        self.message = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Some(Request::Quit);
        }
        if self.is_filter_edited {
            self.edit_filter(key.code);
            return None;
        }
        let is_closed = match &mut self.view {
            View::Table => return self.handle_in_table(key),
            View::Help(pager) | View::Text(pager) => pager.handle(key.code),
            View::Flame(graph) => graph.handle(key.code),
        };
        is_closed.then(|| self.close())
    }

    fn close(&mut self) -> Request {
        self.view = View::Table;
        Request::Close
    }

    fn handle_in_table(&mut self, key: KeyEvent) -> Option<Request> {
        let is_long = key.modifiers.contains(KeyModifiers::SHIFT);
        let step = if is_long { LONG_STEP } else { STEP };
        match key.code {
            KeyCode::Char('q') => return Some(Request::Quit),
            KeyCode::Char('?' | 'h') => self.view = View::Help(Pager::new("podopsy top", help::lines())),
            KeyCode::Down | KeyCode::Char('j') => self.move_selection(1),
            KeyCode::Up | KeyCode::Char('k') => self.move_selection(-1),
            KeyCode::PageDown => self.move_selection(20),
            KeyCode::PageUp => self.move_selection(-20),
            KeyCode::Home => self.move_selection(isize::MIN / 2),
            KeyCode::End => self.move_selection(isize::MAX / 2),
            KeyCode::Char('s' | '>') => self.set_sort(self.sort.step(1)),
            KeyCode::Char('S' | '<') => self.set_sort(self.sort.step(-1)),
            KeyCode::Char('r') => {
                self.is_reversed = !self.is_reversed;
                self.arrange();
            }
            KeyCode::Char('p') => {
                self.is_by_pod = !self.is_by_pod;
                self.selected = None;
                self.arrange();
            }
            KeyCode::Char('/') => self.is_filter_edited = true,
            KeyCode::Esc => {
                self.filter.clear();
                self.arrange();
            }
            KeyCode::Left => return Some(Request::Move(-step)),
            KeyCode::Right => return Some(Request::Move(step)),
            KeyCode::Char('n') => return Some(Request::Now),
            KeyCode::Enter | KeyCode::Char('t') => return self.selected().map(Request::Timeline),
            KeyCode::Char('a') => return self.selected().map(Request::Autopsy),
            KeyCode::Char('f') => return self.selected().map(Request::Flame),
            _ => {}
        }
        None
    }

    fn edit_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.is_filter_edited = false,
            KeyCode::Esc => {
                self.is_filter_edited = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(character) if !character.is_control() && self.filter.len() < FILTER_MAX => {
                self.filter.push(character);
            }
            _ => {}
        }
        self.arrange();
    }

    fn set_sort(&mut self, sort: SortKey) {
        self.sort = sort;
        self.arrange();
    }

    /// Makes the shown rows from the snapshot.
    fn arrange(&mut self) {
        let mut rows = match self.is_by_pod {
            true => by_pod(&self.snapshot.rows),
            false => self.snapshot.rows.clone(),
        };
        rows.retain(|row| order::matches(row, &self.filter));
        order::sort(&mut rows, self.sort, self.is_reversed);
        self.rows = rows;
    }

    fn selected(&self) -> Option<RowKey> {
        self.rows.get(self.selected_index()?).map(ContainerRow::key)
    }

    /// The first row if none is selected, or the selected one is gone.
    pub(crate) fn selected_index(&self) -> Option<usize> {
        let is_selected = |row: &ContainerRow| self.selected.as_ref().is_some_and(|key| row.key() == *key);
        let first = (!self.rows.is_empty()).then_some(0);
        self.rows.iter().position(is_selected).or(first)
    }

    fn move_selection(&mut self, steps: isize) {
        let Some(at) = self.selected_index() else { return };
        let to = (at as isize).saturating_add(steps).clamp(0, self.rows.len() as isize - 1);
        self.selected = self.rows.get(to as usize).map(ContainerRow::key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{drawn, row};

    fn app() -> App {
        let mut app = App::new(SortKey::Memory, false, false);
        let rows = vec![row("cart", "app", 40), row("cart", "side", 2), row("web", "app", 10)];
        app.set_snapshot(Snapshot { rows, is_live: true, ..Snapshot::default() });
        app
    }

    fn press(app: &mut App, keys: &str) -> Option<Request> {
        let mut last = None;
        for character in keys.chars() {
            let code = match character {
                '\n' => KeyCode::Enter,
                '\x1b' => KeyCode::Esc,
                'v' => KeyCode::Down,
                other => KeyCode::Char(other),
            };
            last = app.handle(KeyEvent::new(code, KeyModifiers::NONE));
        }
        last
    }

    fn names(app: &App) -> Vec<String> {
        app.rows.iter().map(|row| row.key().target()).collect()
    }

    #[test]
    fn keys_sort_sum_and_filter() {
        let mut app = app();
        assert_eq!(names(&app), ["shop/cart/app", "shop/web/app", "shop/cart/side"]);
        press(&mut app, "r");
        assert_eq!(names(&app), ["shop/cart/side", "shop/web/app", "shop/cart/app"]);
        press(&mut app, "p");
        assert_eq!(names(&app), ["shop/web", "shop/cart"]);
        press(&mut app, "/we\n");
        assert_eq!((names(&app), app.is_filter_edited), (vec!["shop/web".to_owned()], false));
        press(&mut app, "/q");
        assert!(names(&app).is_empty(), "a letter is a part of the filter");
        press(&mut app, "\x1b");
        assert_eq!(names(&app).len(), 2);
    }

    #[test]
    fn the_selection_stays_on_its_container_while_rows_move() {
        let mut app = app();
        press(&mut app, "v");
        assert_eq!(press(&mut app, "\n"), Some(Request::Timeline(row("web", "app", 0).key())));
        let rows = vec![row("new", "app", 60), row("web", "app", 50), row("cart", "app", 40)];
        app.set_snapshot(Snapshot { rows, ..Snapshot::default() });
        assert_eq!(press(&mut app, "a"), Some(Request::Autopsy(row("web", "app", 0).key())));
        app.set_snapshot(Snapshot::default());
        assert_eq!((press(&mut app, "vv"), press(&mut app, "f")), (None, None));
    }

    #[test]
    fn a_view_closes_with_q_and_the_table_ends_with_it() {
        let mut app = app();
        app.show_text("timeline", vec!["one".into()]);
        assert!(!app.is_table());
        assert_eq!(press(&mut app, "q"), Some(Request::Close));
        assert_eq!((app.is_table(), press(&mut app, "q")), (true, Some(Request::Quit)));
        press(&mut app, "?");
        assert!(drawn(&mut app, (80, 30)).iter().any(|line| line.contains("flame graph")));
        let end = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(app.handle(end), Some(Request::Quit));
    }

    #[test]
    fn arrows_move_in_time() {
        let mut app = app();
        let key = |code, modifiers| KeyEvent::new(code, modifiers);
        let left = app.handle(key(KeyCode::Left, KeyModifiers::NONE));
        assert_eq!(left, Some(Request::Move(SignedDuration::from_secs(-10))));
        let right = app.handle(key(KeyCode::Right, KeyModifiers::SHIFT));
        assert_eq!(right, Some(Request::Move(SignedDuration::from_mins(5))));
        assert_eq!(press(&mut app, "n"), Some(Request::Now));
    }
}
