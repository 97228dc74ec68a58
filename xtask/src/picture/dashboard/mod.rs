//! The picture of manifests/grafana/podopsy.json. Grafana itself is not needed: its panels' queries go to a real Prometheus, as
//! Grafana sends them, and the answers are drawn here.
//!
//! [`record`] writes the answers into a file, from which [`draw`] makes the picture.

mod answers;
mod axes;
mod chart;
mod definition;
mod picture;
mod prometheus;
mod unit;
mod variables;

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::demo::{self, DemoOptions};
use crate::setup;
use crate::sh;
use answers::{Answers, Span};
use definition::Dashboard;
use prometheus::Prometheus;

const DEFINITION: &str = "manifests/grafana/podopsy.json";

/// Runs the demo's longer story under a Prometheus, and writes the answers to the dashboard's queries into `figures`.
pub fn record(figures: &Path, folder: &Path) -> Result<()> {
    sh::need_root("picture --dashboard", "loads kernel probes and starts containers")?;
    let dashboard = definition()?;
    setup::unpack_servers()?;
    let agent = TcpListener::bind("127.0.0.1:0").context("find a free port")?.local_addr()?;
    let prometheus = Prometheus::start(&folder.join("prometheus"), agent)?;
    let began = now()?;
    let out = folder.join("demo-metrics");
    demo::run(&DemoOptions { out, metrics: Some(agent), ..DemoOptions::default() })?;
    let scraped = prometheus.scraped(Span::between(began, now()?))?;
    let answers = ask(&dashboard, &prometheus, scraped)?;
    fs::write(figures, serde_json::to_string(&answers)? + "\n").with_context(|| figures.display().to_string())
}

/// Sends each query of the dashboard, as Grafana sends it.
fn ask(dashboard: &Dashboard, prometheus: &Prometheus, span: Span) -> Result<Answers> {
    let mut answers = Answers::new(Prometheus::version()?, span);
    for target in dashboard.targets() {
        let query = dashboard.query(target)?;
        let series = prometheus.query(&query, span)?;
        answers.insert(query, series);
    }
    Ok(answers)
}

/// Draws the dashboard with these answers.
pub fn draw(answers: &str) -> Result<String> {
    let answers: Answers = serde_json::from_str(answers)?;
    let dashboard = definition()?;
    for target in dashboard.targets() {
        let query = dashboard.query(target)?;
        ensure!(
            answers.series(&query).is_some(),
            "no answer to {query}: run cargo xtask picture --dashboard"
        );
    }
    picture::svg(&dashboard, &answers)
}

fn definition() -> Result<Dashboard> {
    let path = sh::root().join(DEFINITION);
    let text = fs::read_to_string(path).context(DEFINITION)?;
    serde_json::from_str(&text).context(DEFINITION)
}

/// Seconds since 1970.
fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caption_names_the_prometheus_that_answered() {
        let figures = fs::read_to_string(sh::root().join("docs/images/dashboard.json")).unwrap();
        let version = serde_json::from_str::<Answers>(&figures).unwrap().prometheus;
        let page = fs::read_to_string(sh::root().join("docs/metrics.md")).unwrap();
        assert!(
            page.contains(&format!("the answers of Prometheus {version};")),
            "docs/metrics.md: {version}"
        );
    }
}
