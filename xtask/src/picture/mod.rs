//! `cargo xtask picture [--demo] [--dashboard]`: draws what is kept in docs/images/ as SVG: [`terminal`] output (*.txt) and the
//! [`dashboard`]'s figures (*.json).
//!
//! `--demo` makes the texts again, on the demo's pods, and `--dashboard` the figures. A report's picture is taken by Chromium.

mod dashboard;
mod terminal;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::demo::{self, DemoOptions};
use crate::sh;

const IMAGES: &str = "docs/images";
/// What is made on the way, and not committed.
const FILES: &str = "target/pictures";
/// The report's picture is cut below this.
const REPORT_SIZE: &str = "--window-size=1180,900";

/// What to make again before drawing.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct PictureOptions {
    /// Make the texts and the report again, by the demo (as root)
    #[arg(long)]
    demo: bool,
    /// Make the dashboard's figures again: a real Prometheus scrapes the agent beside failing pods for five minutes (as root)
    #[arg(long)]
    dashboard: bool,
}

/// The command: a picture beside each text and beside the figures.
pub fn run(options: PictureOptions) -> Result<()> {
    if options.demo {
        make_texts()?;
    }
    if options.dashboard {
        dashboard::record(&sh::root().join(IMAGES).join("dashboard.json"), &sh::root().join(FILES))?;
    }
    for source in sources()? {
        let picture = source.with_extension("svg");
        fs::write(&picture, draw(&source)?).with_context(|| picture.display().to_string())?;
        sh::progress(format_args!("{}", picture.display()));
    }
    Ok(())
}

/// The files that pictures are drawn from.
fn sources() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(sh::root().join(IMAGES)).context(IMAGES)?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt" || extension == "json"));
    Ok(paths)
}

fn draw(source: &Path) -> Result<String> {
    let text = fs::read_to_string(source).with_context(|| source.display().to_string())?;
    if source.extension().is_some_and(|extension| extension == "json") {
        return dashboard::draw(&text).with_context(|| source.display().to_string());
    }
    Ok(terminal::svg(&text))
}

/// Runs the demo, and takes over what its commands printed.
fn make_texts() -> Result<()> {
    let files = sh::root().join(FILES);
    let out = files.join("demo");
    demo::run(&DemoOptions { out, pictures: Some(files.clone()), ..DemoOptions::default() })?;
    for name in ["restarts", "timeline", "autopsy", "top"] {
        let from = files.join(name).with_extension("txt");
        let to = sh::root().join(IMAGES).join(name).with_extension("txt");
        fs::copy(&from, &to).with_context(|| from.display().to_string())?;
    }
    let mut chromium = Command::new("chromium");
    chromium.args(["--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu", REPORT_SIZE]);
    chromium.arg(format!("--screenshot={}", sh::root().join(IMAGES).join("report.png").display()));
    chromium.arg(format!("file://{}", files.join("report.html").display()));
    sh::run(&mut chromium)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_pictures_are_what_their_sources_make() {
        let sources = sources().unwrap();
        assert!(sources.len() >= 2, "{sources:?}");
        for source in sources {
            let committed = fs::read_to_string(source.with_extension("svg")).unwrap();
            assert!(committed == draw(&source).unwrap(), "{}: run cargo xtask picture", source.display());
        }
    }
}
