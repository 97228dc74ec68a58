//! Rows and screens for tests.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use crate::app::App;
use crate::data::ContainerRow;

pub const MIB: u64 = 1 << 20;

/// A container of the namespace `shop` with a limit of 64 MiB.
pub fn row(pod: &str, container: &str, mib: u64) -> ContainerRow {
    ContainerRow {
        namespace: "shop".into(),
        pod: pod.into(),
        container: container.into(),
        cpu_millis: Some(250),
        memory_bytes: Some(mib * MIB),
        limit_bytes: Some(64 * MIB),
        oom_kills: Some(0),
        restarts: Some(2),
        ..ContainerRow::default()
    }
}

/// The lines of a screen of this size.
pub fn drawn(app: &mut App, (width, height): (u16, u16)) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| app.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| line(y).trim_end().to_owned()).collect()
}
