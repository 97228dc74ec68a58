//! The screen of `podopsy top`: containers with what they use, and for one of them a timeline, an autopsy or a flame graph.
//!
//! | module | does |
//! |---|---|
//! | [`data`] | the rows, and sums of them by pod |
//! | [`cells`] | a row's values as short texts |
//! | [`order`] | sorts and filters rows |
//! | [`app`] | the state, and what each key does |
//! | [`table`], [`pager`], [`flame`], [`help`] | draw a view |
//! | [`screen`] | the terminal: opened, read and restored |
//!
//! Must not depend on: the sources of the data, clocks, async code.
#![forbid(unsafe_code)]

mod app;
pub mod cells;
mod data;
mod flame;
mod help;
mod order;
mod pager;
mod screen;
mod table;
#[cfg(test)]
mod testing;

pub use app::{App, Request};
pub use data::{ContainerRow, RowKey, Snapshot, by_pod};
pub use order::{SortKey, sort};
pub use screen::{Input, Screen, next_input};
