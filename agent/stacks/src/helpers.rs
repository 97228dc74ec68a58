//! The processes that open and parse the files of containers, together.

use std::io;
use std::process::ExitCode;

use podopsy_opener::{OpenerOptions, Openers};
use podopsy_worker::{ParserOptions, ParserPool};

/// Openers and parsers. A clone is the same ones.
#[derive(Clone, Debug)]
pub struct Helpers {
    pub openers: Openers,
    pub parsers: ParserPool,
}

impl Helpers {
    /// Starts the supervisors of both. Must be called before the process gives up the right to start programs.
    pub fn start(parsers: ParserOptions) -> io::Result<Helpers> {
        let openers = Openers::start(opener_options(&parsers))?;
        Ok(Helpers { openers, parsers: ParserPool::start(parsers)? })
    }

    /// Starts the supervisors with the first file: for a command that may have none, and that keeps its rights.
    pub fn on_demand(parsers: ParserOptions) -> Helpers {
        let openers = Openers::on_demand(opener_options(&parsers));
        Helpers { openers, parsers: ParserPool::on_demand(parsers) }
    }

    /// Helpers are threads of this process, without a jail and without bounds.
    // Inlined, it would stand in the stacks that tests look at.
    #[inline(never)]
    #[cfg(any(test, feature = "testing"))]
    pub fn in_threads() -> Helpers {
        Helpers { openers: Openers::in_threads(), parsers: ParserPool::in_threads() }
    }
}

fn opener_options(parsers: &ParserOptions) -> OpenerOptions {
    OpenerOptions { program: parsers.program.clone(), ..OpenerOptions::default() }
}

/// Makes this process a supervisor of helpers if it was started as one, and returns its exit code at the end. To be called
/// first of all in `main`.
pub fn run_if_asked() -> Option<ExitCode> {
    podopsy_opener::run_if_asked().or_else(podopsy_worker::run_if_asked)
}
