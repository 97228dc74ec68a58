//! One file a command. Each asks for its privileges first, then the library, then a renderer.

pub mod diff;
pub mod dns;
pub mod doctor;
pub mod events;
pub mod inspect;
pub mod kept;
pub mod oom;
pub mod pods;
pub mod profile;
pub mod watch;
