//! The terminal: opened, read, and restored whatever happens.

use std::io;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};

use crate::app::App;

/// The alternate screen in raw mode. Dropping it restores the terminal; a panic does so before its message.
pub struct Screen {
    terminal: DefaultTerminal,
}

/// What came from the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    Key(KeyEvent),
    Resized,
}

impl Screen {
    pub fn open() -> io::Result<Screen> {
        Ok(Screen { terminal: ratatui::try_init()? })
    }

    pub fn draw(&mut self, app: &mut App) -> io::Result<()> {
        self.terminal.draw(|frame| app.draw(frame)).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is no other way to restore it, and nowhere to report an error.
        let _ = ratatui::try_restore();
    }
}

/// Waits for a key or a new size. None: there was none in this time.
pub fn next_input(wait: Duration) -> io::Result<Option<Input>> {
    if !event::poll(wait)? {
        return Ok(None);
    }
    Ok(match event::read()? {
        Event::Key(key) if key.kind != KeyEventKind::Release => Some(Input::Key(key)),
        Event::Resize(..) => Some(Input::Resized),
        _ => None,
    })
}
