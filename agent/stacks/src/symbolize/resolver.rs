//! The thread that blazesym lives on.
//!
//! Must not know: processes, mappings, containers. It is handed paths that are safe to open, and addresses.
//!
//! Why a thread of its own: blazesym is not `Send`; a panic in it (it parses what containers wrote) ends this thread
//! and not the recorder; an input that takes it for ever costs a time-out, and this thread is left behind; and its
//! stack can be large, because it recurses into debug information.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use blazesym::symbolize::{self, CodeInfo, Input, Symbolized, source};

use podopsy_model::text::{escape, escape_bytes};

/// The first look into a large file parses its tables: seconds, on a busy node.
const PATIENCE: Duration = Duration::from_secs(20);
/// Reserved, not used: pages are touched only as deep as the recursion goes.
const STACK: usize = 256 << 20;
/// Threads left behind that still run. One more and files go without names.
const MAX_LEFT_BEHIND: usize = 3;
/// Names are the file's to choose; a C++ template can be honest and long.
const MAX_NAME: usize = 1024;

/// A function, with its source line where debug information has it. Escaped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub function: String,
    pub source: Option<(Arc<str>, u32)>,
}

/// What is at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Symbol {
    /// Innermost first: inlined functions, last the function that the code is in.
    pub functions: Vec<Named>,
}

impl Symbol {
    pub fn has_name(&self) -> bool {
        self.functions.last().is_some_and(|outermost| !outermost.function.is_empty())
    }
}

#[derive(Debug)]
enum Ask {
    /// A virtual address in the ELF file at the path, with or without its debug information.
    Elf { path: PathBuf, debug_info: bool, address: u64 },
    /// Drop what is cached of the file.
    Forget { path: PathBuf },
    #[cfg(test)]
    Panic,
}

/// None: looked, and there is no symbol.
type Answer = Option<Symbol>;

#[derive(Debug)]
struct Worker {
    ask: SyncSender<Ask>,
    answer: Receiver<Answer>,
    thread: JoinHandle<()>,
}

/// Owns the thread; started at the first question.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    worker: Option<Worker>,
    left_behind: Vec<JoinHandle<()>>,
}

impl Resolver {
    /// Looks up a virtual address in an ELF file. An error is a counter's name: do not ask for this file again.
    pub fn elf(&mut self, path: &Path, debug_info: bool, address: u64) -> Result<Answer, &'static str> {
        self.ask(Ask::Elf { path: path.to_owned(), debug_info, address })
    }

    /// Frees what is cached of a file, before its path comes to mean another.
    pub fn forget(&mut self, path: &Path) {
        if self.worker.is_some() {
            // A failure has dropped the worker, and the cache with it.
            let _ = self.ask(Ask::Forget { path: path.to_owned() });
        }
    }

    /// Frees everything, and has by the time it returns.
    pub fn reset(&mut self) {
        if let Some(Worker { ask, answer, thread }) = self.worker.take() {
            // The thread waits for a question, and ends when there can be none.
            drop((ask, answer));
            let _ = thread.join();
        }
    }

    fn ask(&mut self, question: Ask) -> Result<Answer, &'static str> {
        self.left_behind.retain(|thread| !thread.is_finished());
        if self.left_behind.len() > MAX_LEFT_BEHIND {
            return Err("symbolizer_stuck");
        }
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => start().ok_or("symbolizer_stuck")?,
        };
        let answer = match worker.ask.send(question) {
            Ok(()) => worker.answer.recv_timeout(PATIENCE),
            Err(_) => Err(RecvTimeoutError::Disconnected),
        };
        match answer {
            Ok(answer) => {
                self.worker = Some(worker);
                Ok(answer)
            }
            Err(RecvTimeoutError::Timeout) => {
                self.left_behind.push(worker.thread);
                Err("symbolizer_timed_out")
            }
            Err(RecvTimeoutError::Disconnected) => Err("symbolizer_panicked"),
        }
    }
}

fn start() -> Option<Worker> {
    let (ask, questions) = sync_channel(1);
    let (answers, answer) = sync_channel(1);
    let run = move || {
        // Files come under names that are ours, so reloading by name has nothing to do; but a descriptor's number
        // comes back for another file, and that costs one fstat to notice.
        let mut blazesym = symbolize::Symbolizer::builder().enable_auto_reload(true).build();
        for question in questions {
            if answers.send(work(&mut blazesym, question)).is_err() {
                break;
            }
        }
    };
    let thread = thread::Builder::new().name("podopsy-symbols".into()).stack_size(STACK).spawn(run).ok()?;
    Some(Worker { ask, answer, thread })
}

fn work(blazesym: &mut symbolize::Symbolizer, question: Ask) -> Answer {
    match question {
        Ask::Elf { path, debug_info, address } => {
            let mut elf = source::Elf::new(&path);
            elf.debug_syms = debug_info;
            let mut look = |debug_info| {
                elf.debug_syms = debug_info;
                let found =
                    blazesym.symbolize_single(&source::Source::Elf(elf.clone()), Input::VirtOffset(address));
                found.ok().and_then(symbol)
            };
            let found = look(debug_info);
            if !debug_info || found.as_ref().is_some_and(Symbol::has_name) {
                return found;
            }
            // Broken debug information takes nothing from the symbol table; nor does debug information whose names are
            // in another file (dwz, `.gnu_debugaltlink`), which is not followed: its lines are good, its name is here.
            match (found, look(false)) {
                (Some(mut lines), Some(mut plain)) => {
                    lines.functions.pop().zip(plain.functions.pop()).map(|(line, name)| {
                        lines.functions.push(Named { source: line.source, ..name });
                        lines
                    })
                }
                (lines, plain) => plain.or(lines),
            }
        }
        Ask::Forget { path } => {
            // Evicting is best effort, and so says blazesym.
            let _ = blazesym.evict(&symbolize::evict::Evict::Elf(symbolize::evict::Elf::new(path)));
            None
        }
        #[cfg(test)]
        Ask::Panic => panic!("a file that blazesym cannot stand (this is a test)"),
    }
}

fn symbol(found: Symbolized<'_>) -> Answer {
    let found = found.into_sym()?;
    let mut functions: Vec<Named> =
        found.inlined.iter().rev().map(|inlined| named(&inlined.name, inlined.code_info.as_ref())).collect();
    functions.push(named(&found.name, found.code_info.as_deref()));
    Some(Symbol { functions })
}

fn named(name: &str, code: Option<&CodeInfo<'_>>) -> Named {
    let source = code.and_then(|code| {
        let path = code.to_path();
        Some((Arc::from(shorten(escape_bytes(path.as_os_str().as_encoded_bytes()))), code.line?))
    });
    Named { function: shorten(escape(name)), source }
}

/// Cut text ends in `…`, so that it is not taken for the whole.
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
    fn a_panic_costs_one_answer_and_not_the_recorder() {
        let mut resolver = Resolver::default();
        assert_eq!(resolver.ask(Ask::Panic), Err("symbolizer_panicked"));
        assert_eq!(resolver.elf(Path::new("/etc/passwd"), false, 0), Ok(None));
    }

    #[test]
    fn threads_left_behind_are_bounded() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(std::sync::Mutex::new(wait));
        let stuck = || {
            let wait = Arc::clone(&wait);
            thread::spawn(move || drop(wait.lock().map(|wait| wait.recv())))
        };
        let mut resolver =
            Resolver { left_behind: (0..=MAX_LEFT_BEHIND).map(|_| stuck()).collect(), worker: None };
        assert_eq!(resolver.elf(Path::new("/etc/passwd"), false, 0), Err("symbolizer_stuck"));
        drop(stop);
        while resolver.left_behind.iter().any(|thread| !thread.is_finished()) {
            thread::yield_now();
        }
        assert_eq!(resolver.elf(Path::new("/etc/passwd"), false, 0), Ok(None));
    }

    #[test]
    fn long_names_are_cut_and_say_so() {
        let cut = shorten("é".repeat(MAX_NAME));
        assert!(cut.ends_with('…') && cut.len() <= MAX_NAME + '…'.len_utf8());
        assert_eq!(shorten("main".to_string()), "main");
    }
}
