//! `podopsy-soak CONTAINERS`: a node's worth of real containers, some of them in trouble at a steady low rate. Run by
//! `cargo xtask bench soak`, which measures the agent beside it.
//!
//! Orders come by standard input, one a line, and each gets one line of JSON:
//!
//! | order | what it does | answer |
//! |---|---|---|
//! | (none) | the node comes up | `{"socket": PATH}` |
//! | `start` | starts the containers | `{"pods": N, "containers": N, "seconds": S, "uids": […]}` |
//! | `kills` | | `{"kills": N, "restarts": N}` |
//! | `settle` | no kill and no restart from here on | the same, for good |
//!
//! The end of its input ends it, and everything that it started. Kills are counted by the kernel and the runtime, so that
//! the recorder's own count can be held against it.

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
    let (Some(Ok(containers)), None) = (args.next().map(|word| word.parse()), args.next()) else {
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
    // A line a pod would be 200 lines.
    let node = Node::up_with(|line| {
        if !line.starts_with("running pod") {
            eprintln!("node: {line}");
        }
    })?;
    let _resolver = node.resolver("answer")?;
    let image = node.victims_image("registry.podopsy.test/soak/app:1")?;
    say(&json!({ "socket": node.cri_socket() }));
    let mut crowd = None;
    for order in std::io::stdin().lock().lines() {
        match (order.context("read an order")?.as_str(), &crowd) {
            ("start", None) => {
                let (started, told) = Crowd::start(&node, &image, containers)?;
                crowd = Some(Arc::new(started));
                say(&told);
            }
            ("kills", Some(crowd)) => say(&crowd.kills()?),
            ("settle", Some(crowd)) => say(&crowd.settle()?),
            (order, _) => bail!("{order:?} is no order, or comes at the wrong time"),
        }
    }
    eprintln!("node: clearing {containers} containers away");
    Ok(())
}

fn say(answer: &Value) {
    println!("{answer}");
}
