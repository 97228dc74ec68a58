//! The agent that records the demo, and the commands that ask it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podopsy_model::Event;

/// A podopsy-agent that keeps its history in the demo's folder. Dropping it ends it.
pub struct Recorder {
    agent: Child,
    /// As they are recorded.
    pub events: mpsc::Receiver<Event>,
    pub podopsy: PathBuf,
    pub socket: PathBuf,
    pub cri_socket: PathBuf,
}

impl Recorder {
    /// Starts the agent, with further arguments, and waits until it records. Its events are also written to `events.jsonl` in
    /// `out`.
    pub fn start(
        [podopsy, agent]: &[PathBuf; 2],
        cri_socket: &Path,
        out: &Path,
        more: &[String],
    ) -> anyhow::Result<Recorder> {
        let state = out.join("history");
        // The history of an earlier demo would be in the answers of this one.
        let _ = std::fs::remove_dir_all(&state);
        let file = out.join("events.jsonl");
        let copy = File::create(&file).with_context(|| format!("create {}", file.display()))?;
        let mut agent = Command::new(agent)
            .arg("--cri-socket")
            .arg(cri_socket)
            .arg("--state-dir")
            .arg(&state)
            .args(["--dns-timeout", "900ms", "--keep-every", "5s"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("run podopsy-agent")?;
        let lines = agent.stdout.take().context("podopsy-agent has no stdout")?;
        let log = agent.stderr.take().context("podopsy-agent has no stderr")?;
        let recorder = Recorder {
            agent,
            events: events(BufReader::new(lines), copy),
            podopsy: podopsy.clone(),
            socket: state.join("agent.sock"),
            cri_socket: cri_socket.to_owned(),
        };
        wait_until_recording(BufReader::new(log))?;
        Ok(recorder)
    }

    /// podopsy, with the demo's agent and container runtime.
    pub fn podopsy(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.podopsy);
        command
            .args(arguments)
            .env("PODOPSY_SOCKET", &self.socket)
            .env("PODOPSY_CRI_SOCKET", &self.cri_socket);
        command
    }

    /// Ends the agent and waits for it.
    pub fn end(&mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.agent.id())?), Signal::SIGTERM).context("end podopsy-agent")?;
        let status = self.agent.wait().context("wait for podopsy-agent")?;
        if !status.success() {
            bail!("podopsy-agent ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}

/// Sends each line as an event, and writes it to a file.
fn events(lines: impl BufRead + Send + 'static, mut copy: File) -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel();
    std::thread::spawn(move || -> anyhow::Result<()> {
        for line in lines.lines() {
            let line = line?;
            writeln!(copy, "{line}")?;
            if sender.send(serde_json::from_str(&line)?).is_err() {
                break;
            }
        }
        Ok(())
    });
    events
}

/// Reads the log until the agent records. If it ends before, what it wrote is in the error.
fn wait_until_recording(mut log: impl BufRead + Send + 'static) -> anyhow::Result<()> {
    let mut before = String::new();
    loop {
        let mut line = String::new();
        if log.read_line(&mut line).context("read the log of podopsy-agent")? == 0 {
            bail!("podopsy-agent did not start: {}", before.trim());
        }
        if line.contains("recording") {
            break;
        }
        before.push_str(&line);
    }
    // Drained, so that the agent does not wait for a reader.
    std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
    Ok(())
}
