//! A Prometheus of its own for the dashboard: Debian's, which `cargo xtask setup test` unpacks beside the system.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::answers::{STEP, Series, Span, read_matrix};
use crate::{setup, sh};

/// In seconds.
pub const SCRAPE_INTERVAL: u64 = 2;
pub const RULES: &str = "manifests/prometheus/podopsy.rules.yaml";

/// A running server. Dropping it ends it.
pub struct Prometheus {
    child: Child,
    url: String,
}

impl Prometheus {
    /// Starts it, with podopsy's rules. It scrapes the agent as soon as that listens.
    pub fn start(folder: &Path, agent: SocketAddr) -> Result<Prometheus> {
        // The samples of an earlier run.
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let config = folder.join("prometheus.yml");
        fs::write(&config, configuration(agent, &sh::root().join(RULES)))?;
        let address = TcpListener::bind("127.0.0.1:0").context("find a free port")?.local_addr()?;
        let mut command = Command::new(program("prometheus")?);
        command.arg(format!("--config.file={}", config.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("tsdb").display()));
        command.arg(format!("--web.listen-address={address}"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(fs::File::create(folder.join("prometheus.log"))?).spawn();
        Ok(Prometheus { child: child.context("start Prometheus")?, url: format!("http://{address}") })
    }

    /// Its version: the third word of `prometheus, version 2.42.0+ds (branch: …)`.
    pub fn version() -> Result<String> {
        let printed = sh::capture(Command::new(program("prometheus")?).arg("--version"))?;
        Ok(printed.split_whitespace().nth(2).context("prometheus --version has no version")?.to_owned())
    }

    /// The part of `span` in which the agent was scraped.
    pub fn scraped(&self, span: Span) -> Result<Span> {
        let up = self.query("up == 1", span)?;
        let values = &up.first().context("Prometheus never reached the agent; see its log")?.values;
        let is_up = |value: &Option<f64>| value.is_some();
        let first = values.iter().position(is_up).context("no sample")?;
        // The last page may be that of an agent that is ending.
        let last = values.iter().rposition(is_up).context("no sample")?.saturating_sub(2);
        Ok(Span { start: span.time(first) as u64, end: span.time(last) as u64 })
    }

    /// The answer to a range query.
    pub fn query(&self, query: &str, span: Span) -> Result<Vec<Series>> {
        let mut promtool = Command::new(program("promtool")?);
        promtool.args(["query", "range", "--format=json"]);
        promtool.arg(format!("--start={}", span.start)).arg(format!("--end={}", span.end));
        promtool.arg(format!("--step={STEP}s")).arg(&self.url).arg(query);
        read_matrix(&sh::capture(&mut promtool)?, span).with_context(|| query.to_owned())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(name: &str) -> Result<PathBuf> {
    Ok(setup::cache_dir()?.join("packages/usr/bin").join(name))
}

fn configuration(agent: SocketAddr, rules: &Path) -> String {
    let rules = rules.display().to_string();
    // JSON is YAML.
    serde_json::json!({
        "global": {
            "scrape_interval": format!("{SCRAPE_INTERVAL}s"),
            "scrape_timeout": format!("{SCRAPE_INTERVAL}s"),
            "evaluation_interval": format!("{SCRAPE_INTERVAL}s"),
        },
        "rule_files": [rules],
        "scrape_configs": [{
            "job_name": "podopsy",
            "honor_labels": true,
            "static_configs": [{ "targets": [agent.to_string()], "labels": { "instance": "node-1" } }],
        }],
    })
    .to_string()
}
