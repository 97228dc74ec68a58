//! A DNS server on the node's bridge: the victim program `resolver`, and a handle that switches its mode.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};

use crate::PATIENCE;
use crate::network::Network;
use crate::process::Process;

/// A running resolver. Dropping the handle ends it.
#[derive(Debug)]
pub struct Resolver {
    child: Child,
    address: String,
    control: Mutex<(ChildStdin, Receiver<String>)>,
    queries: Arc<Mutex<Vec<String>>>,
}

impl Resolver {
    /// Starts it in the node's network and waits until it listens on port 53.
    pub(crate) fn start(
        program: &std::path::Path,
        network: &Network,
        address: &str,
        mode: &str,
    ) -> anyhow::Result<Self> {
        let mut child = network
            .command(program)
            .args([&format!("{address}:53"), "--mode", mode, "--control"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let stdin = child.stdin.take().context("resolver has no standard input")?;
        let stdout = child.stdout.take().context("resolver has no standard output")?;
        let queries = Arc::new(Mutex::new(Vec::new()));
        let (sender, answers) = channel();
        let kept = queries.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if line.starts_with("udp ") || line.starts_with("tcp ") {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                } else {
                    // If the handle was dropped, the pipe is still drained, so that the resolver does not block.
                    let _ = sender.send(line);
                }
            }
        });
        let mut resolver =
            Self { child, address: address.to_owned(), control: Mutex::new((stdin, answers)), queries };
        let first = {
            let control = resolver.control.get_mut().unwrap_or_else(PoisonError::into_inner);
            control.1.recv_timeout(PATIENCE)
        };
        if !first.is_ok_and(|line| line.starts_with("resolver: ")) {
            bail!("the resolver on {address} with mode {mode:?} did not start");
        }
        Ok(resolver)
    }

    /// The address that it listens on, for `PodSpec::dns`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sets the mode: `answer`, `nxdomain`, `servfail`, `silent`, `late-2000`, …; it is in force when this returns.
    pub fn set_mode(&self, mode: &str) -> anyhow::Result<()> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(control.0, "{mode}").context("the resolver is gone")?;
        let answer = control.1.recv_timeout(PATIENCE).context("the resolver is gone")?;
        if answer != format!("mode {mode}") {
            bail!("resolver: {answer}");
        }
        Ok(())
    }

    /// Every query so far: `udp CLIENT:PORT TYPE NAME MODE`.
    pub fn queries(&self) -> Vec<String> {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its pid on the machine. podopsy sees its traffic, too, from the server's end.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    pub(crate) fn process(&self) -> Option<Process> {
        Process::now(self.pid())
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
