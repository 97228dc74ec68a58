//! The containers, which `podopsy-soak` of tests/ runs: it reads orders, and answers each with a line of JSON.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::sh;
use crate::statics::{self, Statics};

/// A separate lock and state file: other tests may run on this machine meanwhile.
const HOME: (&str, &str) = ("PODOPSY_HARNESS_HOME", "/run/podopsy-soak");

/// The running node; dropping it ends it.
pub struct Load {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// The numbers of kills and restarts, from the kernel and the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Toll {
    pub kills: u64,
    pub restarts: u64,
}

impl Load {
    /// Starts the node, without containers. Returns the runtime's socket, too.
    pub fn start(containers: usize) -> Result<(Load, PathBuf)> {
        let victims = statics::build(Statics::Victims)?;
        sh::run(sh::cargo().args(["build", "--quiet", "--package", "podopsy-soak"]))?;
        let mut command = sh::cargo();
        // cargo becomes the program that it runs.
        command.args(["run", "--quiet", "--package", "podopsy-soak", "--"]);
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
        let socket = answer["socket"].as_str().context("the load's answer has no socket")?;
        Ok((load, socket.into()))
    }

    /// Starts the containers. Returns how many pods there are, how many seconds it took, and the pods' UIDs.
    pub fn crowd(&mut self) -> Result<(u64, f64, Vec<String>)> {
        let answer = self.ask("start")?;
        let uids = answer["uids"].as_array().context("the load's answer has no pods")?;
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

    /// Stops the containers that are killed: no kill happens after this.
    pub fn settle(&mut self) -> Result<Toll> {
        read_toll(&self.ask("settle")?)
    }

    fn ask(&mut self, order: &str) -> Result<Value> {
        let orders = self.orders.as_mut().context("the load takes no orders any more")?;
        writeln!(orders, "{order}").with_context(|| format!("send the load the order {order}"))?;
        self.answer()
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.answers.read_line(&mut line).context("hear the load")? == 0 {
            bail!("the load has ended: its reason stands above");
        }
        serde_json::from_str(&line).with_context(|| format!("parse the load's answer {line:?}"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It removes its pods: at a signal it kills all of them, at the end of its orders it stops pod by pod, which takes
        // minutes.
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM);
        self.orders = None;
        let _ = self.child.wait();
    }
}

fn read_toll(answer: &Value) -> Result<Toll> {
    let number = |name: &str| answer[name].as_u64().with_context(|| format!("the load counts no {name}"));
    Ok(Toll { kills: number("kills")?, restarts: number("restarts")? })
}
