//! The thread that runs blazesym. It gets paths that are safe to open, and addresses.
//!
//! blazesym has a thread of its own for four reasons: it is not `Send`; a panic in it ends this thread and not the
//! recorder, and it parses what containers wrote; an input that takes it forever costs a timeout, after which the
//! thread is given up; and the thread can have a large stack, because blazesym recurses into debug information.
//!
//! Must not depend on: processes, mappings, containers.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blazesym::symbolize::{self, CodeInfo, Input, Symbolized, source};

use crate::StackLossReason;
use podopsy_model::text::{escape, escape_bytes};

/// The first lookup in a large file parses its tables, which takes seconds on a busy node.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Reserved, not used: pages are only touched as deep as the recursion goes.
const STACK_BYTES: usize = 256 << 20;
/// Threads that did not answer in time and still run. With more of them, no address is looked up.
const MAX_STUCK: usize = 3;
/// Bytes of a name that are kept. The file chooses its names; those of C++ templates can be long.
const MAX_NAME: usize = 1024;

/// A function, with its source line if debug information has it. Texts are escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SymbolFunction {
    /// Empty if unknown.
    pub name: String,
    pub source: Option<(Arc<str>, u32)>,
}

/// The functions at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    /// Innermost first: the inlined functions, and last the function that contains the code.
    pub functions: Vec<SymbolFunction>,
}

impl Symbol {
    pub fn has_name(&self) -> bool {
        self.functions.last().is_some_and(|outermost| !outermost.name.is_empty())
    }
}

#[derive(Debug)]
enum Request {
    /// Look up a virtual address in the ELF file at the path, with or without its debug information.
    Resolve { path: PathBuf, debug_info: bool, address: u64 },
    /// Drop what is cached of the file.
    Forget { path: PathBuf },
    #[cfg(test)]
    Panic,
}

/// None if there is no symbol at the address.
type Response = Option<Symbol>;

#[derive(Debug)]
struct Worker {
    requests: SyncSender<Request>,
    responses: Receiver<Response>,
    thread: JoinHandle<()>,
}

/// Owns the thread, which starts with the first request.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    worker: Option<Worker>,
    /// Threads that did not answer in time.
    stuck: Vec<JoinHandle<()>>,
}

impl Resolver {
    /// Looks up a virtual address in an ELF file. After an error, do not look up this file again.
    pub fn resolve(
        &mut self,
        path: &Path,
        debug_info: bool,
        address: u64,
    ) -> Result<Response, StackLossReason> {
        self.request(Request::Resolve { path: path.to_owned(), debug_info, address })
    }

    /// Frees what is cached of a file, before its path is used for another one.
    pub fn forget(&mut self, path: &Path) {
        if self.worker.is_some() {
            // An error is correct here: it has dropped the worker, and its cache with it.
            let _ = self.request(Request::Forget { path: path.to_owned() });
        }
    }

    /// Ends the thread, which frees everything, and waits for that.
    pub fn reset(&mut self) {
        if let Some(Worker { requests, responses, thread }) = self.worker.take() {
            // The thread waits for a request, and ends when the channel is closed.
            drop((requests, responses));
            let _ = thread.join();
        }
    }

    fn request(&mut self, request: Request) -> Result<Response, StackLossReason> {
        self.stuck.retain(|thread| !thread.is_finished());
        if self.stuck.len() > MAX_STUCK {
            return Err(StackLossReason::SymbolizerStuck);
        }
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => start().ok_or(StackLossReason::SymbolizerStuck)?,
        };
        let response = match worker.requests.send(request) {
            Ok(()) => worker.responses.recv_timeout(ANSWER_TIMEOUT),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        match response {
            Ok(response) => {
                self.worker = Some(worker);
                Ok(response)
            }
            Err(RecvTimeoutError::Timeout) => {
                self.stuck.push(worker.thread);
                Err(StackLossReason::SymbolizerTimedOut)
            }
            Err(RecvTimeoutError::Disconnected) => Err(StackLossReason::SymbolizerPanicked),
        }
    }
}

fn start() -> Option<Worker> {
    let (requests, received) = sync_channel(1);
    let (answers, responses) = sync_channel(1);
    let run = move || {
        // Reloading compares the file at a path with the cached one, at the cost of one fstat. It is needed because the
        // paths are descriptors, and the number of a closed descriptor is used again for another file.
        let mut blazesym = symbolize::Symbolizer::builder().enable_auto_reload(true).build();
        for request in received {
            if answers.send(handle(&mut blazesym, request)).is_err() {
                break;
            }
        }
    };
    let thread =
        thread::Builder::new().name("podopsy-symbols".into()).stack_size(STACK_BYTES).spawn(run).ok()?;
    Some(Worker { requests, responses, thread })
}

fn handle(blazesym: &mut symbolize::Symbolizer, request: Request) -> Response {
    match request {
        Request::Resolve { path, debug_info, address } => {
            let look_up = |debug_info| {
                let mut elf = source::Elf::new(&path);
                elf.debug_syms = debug_info;
                let found = blazesym.symbolize_single(&source::Source::Elf(elf), Input::VirtOffset(address));
                found.ok().and_then(to_symbol)
            };
            let found = look_up(debug_info);
            if !debug_info || found.as_ref().is_some_and(Symbol::has_name) {
                return found;
            }
            add_plain_name(found, look_up(false))
        }
        Request::Forget { path } => {
            // blazesym documents evicting as best effort.
            let _ = blazesym.evict(&symbolize::evict::Evict::Elf(symbolize::evict::Elf::new(path)));
            None
        }
        #[cfg(test)]
        Request::Panic => panic!("a file that makes blazesym panic (this is a test)"),
    }
}

/// Adds the name of the symbol table to lines from debug information without names.
///
/// Broken debug information must not hide the symbol table. Names can also be in another file (dwz,
/// `.gnu_debugaltlink`), which is not followed: then the lines are good, and the name is in the symbol table.
fn add_plain_name(lines: Option<Symbol>, plain: Option<Symbol>) -> Option<Symbol> {
    match (lines, plain) {
        (Some(mut lines), Some(mut plain)) => {
            let (line, name) = lines.functions.pop().zip(plain.functions.pop())?;
            lines.functions.push(SymbolFunction { source: line.source, ..name });
            Some(lines)
        }
        (lines, plain) => plain.or(lines),
    }
}

fn to_symbol(found: Symbolized<'_>) -> Option<Symbol> {
    let found = found.into_sym()?;
    let inlined = found.inlined.iter().rev();
    let mut functions: Vec<SymbolFunction> =
        inlined.map(|inlined| function(&inlined.name, inlined.code_info.as_ref())).collect();
    functions.push(function(&found.name, found.code_info.as_deref()));
    Some(Symbol { functions })
}

fn function(name: &str, code: Option<&CodeInfo<'_>>) -> SymbolFunction {
    let source = code.and_then(|code| {
        let path = code.to_path();
        Some((Arc::from(shorten(escape_bytes(path.as_os_str().as_encoded_bytes()))), code.line?))
    });
    SymbolFunction { name: shorten(escape(name)), source }
}

/// Cuts a text after [`MAX_NAME`] bytes. Cut text ends in `…`, so that it is not taken for the whole.
pub(super) fn shorten(mut text: String) -> String {
    if text.len() > MAX_NAME {
        text.truncate(text.floor_char_boundary(MAX_NAME));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_costs_one_answer_and_the_resolver_works_on() {
        let mut resolver = Resolver::default();
        assert_eq!(resolver.request(Request::Panic), Err(StackLossReason::SymbolizerPanicked));
        assert_eq!(resolver.resolve(Path::new("/etc/passwd"), false, 0), Ok(None));
    }

    #[test]
    fn stuck_threads_are_bounded() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let stuck = || {
            let wait = Arc::clone(&wait);
            thread::spawn(move || drop(wait.lock().map(|wait| wait.recv())))
        };
        let mut resolver = Resolver { stuck: (0..=MAX_STUCK).map(|_| stuck()).collect(), worker: None };
        assert_eq!(
            resolver.resolve(Path::new("/etc/passwd"), false, 0),
            Err(StackLossReason::SymbolizerStuck)
        );
        drop(stop);
        while resolver.stuck.iter().any(|thread| !thread.is_finished()) {
            thread::yield_now();
        }
        assert_eq!(resolver.resolve(Path::new("/etc/passwd"), false, 0), Ok(None));
    }

    #[test]
    fn long_names_are_cut_and_marked() {
        let cut = shorten("é".repeat(MAX_NAME));
        assert!(cut.ends_with('…') && cut.len() <= MAX_NAME + '…'.len_utf8());
        assert_eq!(shorten("main".to_string()), "main");
    }
}
