//! What becomes of an event in the agent: stored, then printed and streamed; and whom the agent tells how it is.
//!
//! Must not know: how events are made.

mod keep;
mod out;
mod profiles;
mod systemd;

pub use out::{Out, Paths};
pub use systemd::Systemd;
