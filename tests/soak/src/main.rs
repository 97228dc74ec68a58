//! `podopsy-soak CONTAINERS`: a node's worth of real containers, some of which fail at a steady low rate. Run by
//! `cargo xtask bench soak`, which measures the agent beside it.
//!
//! Commands come on standard input, one per line, and each is answered by one line of JSON:
//!
//! | command | what it does | answer |
//! |---|---|---|
//! | (none) | brings the node up | `{"socket": PATH}` |
//! | `start` | starts the containers | `{"pods": N, "containers": N, "seconds": S, "uids": […]}` |
//! | `kills` | counts | `{"kills": N, "restarts": N}` |
//! | `settle` | ends kills and restarts, then counts | the same, final |
//!
//! The end of its input ends it and everything that it started. Kills are counted by the kernel and the runtime, so
//! that the recorder's count can be compared with theirs.

mod crowd;
mod trouble;

use std::io::BufRead;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, bail};
use podopsy_harness::Node;
use serde_json::{Value, json};

use crowd::Crowd;

const USAGE: &str = "usage: podopsy-soak CONTAINERS";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(Ok(containers)), None) = (args.next().map(|argument| argument.parse()), args.next()) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(containers) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("podopsy-soak: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(containers: usize) -> anyhow::Result<()> {
    // One line for each pod would be 200 lines.
    let node = Node::up_with(|line| {
        if !line.starts_with("running pod") {
            eprintln!("node: {line}");
        }
    })?;
    let _resolver = node.resolver("answer")?;
    let image = node.victims_image("registry.podopsy.test/soak/app:1")?;
    answer(&json!({ "socket": node.cri_socket() }));
    let mut crowd = None;
    for command in std::io::stdin().lock().lines() {
        match (command.context("read a command")?.as_str(), &crowd) {
            ("start", None) => {
                let (started, description) = Crowd::start(&node, &image, containers)?;
                crowd = Some(Arc::new(started));
                answer(&description);
            }
            ("kills", Some(crowd)) => answer(&crowd.kills()?),
            ("settle", Some(crowd)) => answer(&crowd.settle()?),
            (command, _) => bail!("{command:?} is not a command, or is not possible now"),
        }
    }
    eprintln!("node: removing {containers} containers");
    Ok(())
}

fn answer(line: &Value) {
    println!("{line}");
}
