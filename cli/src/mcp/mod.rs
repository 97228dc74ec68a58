//! A read-only server of the Model Context Protocol over stdin and stdout: JSON-RPC 2.0, one message a line.
//!
//! | module | does |
//! |---|---|
//! | [`server`] | reads requests, runs calls at the same time, writes responses |
//! | [`lines`] | splits the input into lines of bounded length |
//! | [`protocol`] | JSON-RPC messages, and the versions of the protocol |
//! | [`tools`] | the tools: their arguments, and the data that they answer with |
//! | [`source`] | where the data comes from: an agent's history, the store that it left, or a bundle |
//! | [`answer`] | what all answers have, and the bound on their size |
//!
//! Nothing here records, writes a file, or asks the container runtime.

mod answer;
mod lines;
mod protocol;
#[cfg(test)]
mod schema_tests;
mod server;
mod source;
mod tools;

pub use server::Server;
pub use source::Source;
