//! A resolver of ours on the node's bridge: the victim program `resolver`, with a handle to switch it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};

use crate::PATIENCE;
use crate::network::Network;
use crate::process::Process;

/// A running resolver; it ends with its handle.
#[derive(Debug)]
pub struct Resolver {
    child: Child,
    address: String,
    orders: Mutex<(ChildStdin, Receiver<String>)>,
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
                    // The handle may be gone; the pipe is drained all the same.
                    let _ = sender.send(line);
                }
            }
        });
        let mut resolver =
            Self { child, address: address.to_owned(), orders: Mutex::new((stdin, answers)), queries };
        let first = {
            let orders = resolver.orders.get_mut().unwrap_or_else(PoisonError::into_inner);
            orders.1.recv_timeout(PATIENCE)
        };
        if !first.is_ok_and(|line| line.starts_with("resolver: ")) {
            bail!("the resolver on {address} with mode {mode:?} did not start");
        }
        Ok(resolver)
    }

    /// Where it listens, for `PodSpec::dns`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// `answer`, `nxdomain`, `servfail`, `silent`, `late-2000`, …; in force when this returns.
    pub fn set_mode(&self, mode: &str) -> anyhow::Result<()> {
        let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(orders.0, "{mode}").context("the resolver is gone")?;
        let answer = orders.1.recv_timeout(PATIENCE).context("the resolver is gone")?;
        if answer != format!("mode {mode}") {
            bail!("resolver: {answer}");
        }
        Ok(())
    }

    /// Every query so far: `udp CLIENT:PORT TYPE NAME MODE`.
    pub fn queries(&self) -> Vec<String> {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its process, on the machine: itself a DNS server that podopsy sees the other end of.
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
