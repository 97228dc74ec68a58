//! One file per command. Each checks its privileges, calls the libraries and passes the result to a renderer.

pub mod bridge;
pub mod bundle;
pub mod complete;
pub mod core;
pub mod diff;
pub mod dns;
pub mod doctor;
pub mod enter;
pub mod events;
pub mod explain;
pub mod fleet_doctor;
pub mod fleet_watch;
pub mod inspect;
pub mod kept;
pub mod manual;
pub mod mcp;
pub mod net;
pub mod oom;
pub mod pods;
pub mod profile;
pub mod remote;
pub mod report;
pub mod restarts;
pub mod timeline;
pub mod top;
pub mod watch;
