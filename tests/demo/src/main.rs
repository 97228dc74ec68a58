//! `podopsy-demo`: an outage on real pods, recorded by podopsy. Run by `cargo xtask demo`.
//!
//! `finance/checkout-api` leaks a buffer on every failed DNS lookup; its resolver stops answering;
//! `finance/pricing` burns CPU beside it. podopsy records both. This program draws no
//! conclusions of its own: it prints what podopsy wrote.

mod outage;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: podopsy-demo [--out DIR]";

fn main() -> ExitCode {
    let mut out = PathBuf::from("demo-out");
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match (arg.as_str(), args.next()) {
            ("--out", Some(dir)) => out = dir.into(),
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    match outage::run(&out) {
        Ok(recorded) => {
            report::print(&recorded, &out);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("podopsy-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}
