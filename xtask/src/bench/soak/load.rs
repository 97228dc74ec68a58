//! The containers, which `podopsy-soak` of tests/ runs: orders in, a line of JSON out for each.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::sh;
use crate::statics::{self, Statics};

/// A lock and a state file of its own: others may test on this machine meanwhile.
const HOME: (&str, &str) = ("PODOPSY_HARNESS_HOME", "/run/podopsy-soak");

/// The running node; gone with this.
pub struct Load {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// What was killed and started again, by the kernel and the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Toll {
    pub kills: u64,
    pub restarts: u64,
}

impl Load {
    /// Brings the node up, still without containers; the runtime's socket.
    pub fn start(containers: usize) -> Result<(Load, PathBuf)> {
        let victims = statics::build(Statics::Victims)?;
        sh::run(sh::cargo().args([
            "build",
            "--quiet",
            "--package",
            "podopsy-tests",
            "--bin",
            "podopsy-soak",
        ]))?;
        let mut command = sh::cargo();
        // cargo becomes the program that it runs.
        command.args(["run", "--quiet", "--package", "podopsy-tests", "--bin", "podopsy-soak", "--"]);
        command.arg(containers.to_string()).env(HOME.0, HOME.1);
        command.env(Statics::Victims.variable(), victims);
        sh::progress(format_args!("$ {}", sh::show(&command)));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", sh::show(&command)))?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("the load has no stdout")?);
        let mut load = Load { child, orders, answers };
        let answer = load.answer()?;
        let socket = answer["socket"].as_str().context("the load tells no socket")?;
        Ok((load, socket.into()))
    }

    /// Starts the containers: how many pods, how many seconds, and the pods' uids.
    pub fn crowd(&mut self) -> Result<(u64, f64, Vec<String>)> {
        let answer = self.ask("start")?;
        let uids = answer["uids"].as_array().context("the load tells no pods")?;
        let uids = uids.iter().filter_map(|uid| uid.as_str().map(str::to_owned)).collect();
        Ok((
            answer["pods"].as_u64().context("how many pods")?,
            answer["seconds"].as_f64().context("how long")?,
            uids,
        ))
    }

    pub fn toll(&mut self) -> Result<Toll> {
        read_toll(&self.ask("kills")?)
    }

    /// No kill comes after this.
    pub fn settle(&mut self) -> Result<Toll> {
        read_toll(&self.ask("settle")?)
    }

    fn ask(&mut self, order: &str) -> Result<Value> {
        let orders = self.orders.as_mut().context("the load takes no orders any more")?;
        writeln!(orders, "{order}").with_context(|| format!("tell the load to {order}"))?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line).context("hear the load")? == 0 {
            bail!("the load has ended: its reason stands above");
        }
        serde_json::from_str(&line).with_context(|| format!("the load says {line:?}"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It clears away what it started: at a signal by killing all of it, at the end of its orders pod by pod, which
        // takes minutes.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        self.orders = None;
        let _ = self.child.wait();
    }
}

fn read_toll(answer: &Value) -> Result<Toll> {
    let number = |name: &str| answer[name].as_u64().with_context(|| format!("the load counts no {name}"));
    Ok(Toll { kills: number("kills")?, restarts: number("restarts")? })
}
