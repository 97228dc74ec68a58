//! `cargo xtask cluster <up|down|status|test>`: a real Kubernetes node on this machine, and the tests that need one.
//!
//! | file | does |
//! |---|---|
//! | [`build`] | builds Kubernetes 1.20 from Debian's source package |
//! | [`kubectl`] | fetches a newer kubectl, and writes the scripts that call both |
//! | [`layout`] | names the folders, addresses and cgroups |
//! | [`state`] | records what was started, for `down` and `status` |
//! | [`process`] | starts and ends processes, known by pid and start time |
//! | [`namespaces`] | makes the mount and network namespaces |
//! | [`cgroups`] | makes, empties and removes the cluster's cgroups |
//! | [`pki`] | makes the certificates and kubeconfigs |
//! | [`config`] | writes the configuration of containerd, CNI and the kubelet |
//! | [`components`] | lists the programs with their arguments, in the order of starting |
//! | [`images`] | builds and imports the images |
//! | [`down`] | ends everything and removes it |
//! | [`suite`] | runs tests/cluster and prints a table |
//!
//! docs/cluster.md describes how the parts fit together, and what they need.

mod build;
mod cgroups;
mod components;
mod config;
mod down;
mod images;
mod kubectl;
mod layout;
mod namespaces;
mod pki;
mod process;
mod state;
mod suite;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Subcommand;

use crate::setup::{self, Group};
use crate::sh;
use components::Component;
use layout::Layout;
use state::{Lock, State};

/// The longest wait for a part of the cluster; it takes seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// What to do with the cluster.
#[derive(Clone, Debug, Subcommand)]
pub enum Action {
    /// Build Kubernetes once (11 CPU-minutes), start a node, and load podopsy's image and the victims'
    Up,
    /// End every process of the cluster and remove what it made, also after a `kill -9`
    Down,
    /// List what runs, and where
    Status,
    /// Start a cluster, run tests/cluster, take it down, and print a table
    Test {
        /// Run only the tests whose name contains one of these
        filter: Vec<String>,
        /// Leave the cluster running afterwards
        #[arg(long)]
        keep: bool,
    },
}

/// The command.
pub fn run(action: &Action) -> Result<()> {
    let name = match action {
        Action::Up => "up",
        Action::Down => "down",
        Action::Status => "status",
        Action::Test { .. } => "test",
    };
    sh::need_root(&format!("cluster {name}"), "makes namespaces and cgroups")?;
    let layout = Layout::new()?;
    match action {
        Action::Up => {
            prepare(&layout)?;
            let _lock = Lock::take(&layout)?;
            up(&layout)
        }
        Action::Down => {
            let _lock = Lock::take(&layout)?;
            down::run(&layout)
        }
        Action::Status => status(&layout),
        Action::Test { filter, keep } => {
            prepare(&layout)?;
            let _lock = Lock::take(&layout)?;
            suite::run(&layout, filter, *keep)
        }
    }
}

/// Installs and builds what a cluster consists of. Nothing is started.
fn prepare(layout: &Layout) -> Result<()> {
    sh::progress("== setup");
    setup::install(&[Group::Cluster])?;
    build::ensure(layout)?;
    kubectl::ensure(layout)
}

/// Debian 13's kubectl, which `ensure_kubectl` unpacks: its kustomize reads components.
pub fn newer_kubectl() -> Result<PathBuf> {
    Ok(kubectl::newer(&Layout::new()?))
}

/// Downloads it, unless it is there.
pub fn ensure_kubectl() -> Result<()> {
    kubectl::ensure(&Layout::new()?)
}

/// Starts a cluster, unless one runs in full. The caller holds the lock.
fn up(layout: &Layout) -> Result<()> {
    if let Some(state) = State::load(layout)
        && state.is_whole()
    {
        sh::progress("the cluster runs already; `cargo xtask cluster down` ends it");
        print_access(layout);
        return Ok(());
    }
    // What a killed run has left.
    down::run(layout)?;
    let archives = images::build(layout)?;
    sh::progress("== cluster");
    if let Err(error) = start(layout, &archives) {
        sh::progress("the cluster did not start; its logs are kept until the next `up`:");
        down::end(layout)?;
        return Err(error.context(format!("start the cluster (logs: {})", layout.logs().display())));
    }
    print_access(layout);
    Ok(())
}

fn start(layout: &Layout, archives: &[images::Archive]) -> Result<()> {
    layout.create()?;
    let mut state = State::new(layout);
    state.make_mount_points()?;
    cgroups::create()?;
    pki::create(layout)?;
    config::write(layout)?;
    let holder = namespaces::create(layout)?;
    state.add("namespaces", holder)?;
    kubectl::write_scripts(layout, holder)?;
    for component in components::all(layout) {
        start_component(layout, &mut state, &component)?;
        if component.name == "containerd" {
            images::import(layout, holder, archives)?;
        }
    }
    wait("the node is Ready", &state, || {
        kubectl::call(layout, &["wait", "--for=condition=Ready", "node/node1", "--timeout=1s"]).map(drop)
    })?;
    // A pod that is created before its ServiceAccount is refused.
    wait("the default ServiceAccount exists", &state, || {
        kubectl::call(layout, &["get", "serviceaccount", "default"]).map(drop)
    })?;
    state.finish()
}

fn start_component(layout: &Layout, state: &mut State, component: &Component) -> Result<()> {
    let holder = state.holder()?;
    let log = layout.logs().join(format!("{}.log", component.name));
    let process = process::start(&component.command(holder), &log)?;
    state.add(component.name, process)?;
    if let Some(is_ready) = component.is_ready {
        wait(&format!("{} is ready", component.name), state, || is_ready(layout, holder))?;
    }
    Ok(())
}

/// Waits until `check` succeeds; fails at once when a process of the cluster has ended.
fn wait(what: &str, state: &State, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    loop {
        let error = match check() {
            Ok(()) => {
                sh::progress(what);
                return Ok(());
            }
            Err(error) => error,
        };
        if let Some(name) = state.first_ended() {
            bail!("waiting until {what}: {name} has ended; its log:\n{}", state.log_tail(name));
        }
        if start.elapsed() > PATIENCE {
            return Err(error.context(format!("waited {PATIENCE:?} until {what}")));
        }
        std::thread::sleep(Duration::from_millis(250));
    }
}

fn print_access(layout: &Layout) {
    sh::progress(format_args!("Kubernetes {} is up; its own kubectl and a newer one:", build::VERSION));
    println!("export KUBECONFIG={}", layout.kubeconfig("admin").display());
    println!("{}", layout.kubectl_old().display());
    println!("{}", layout.kubectl().display());
}

fn status(layout: &Layout) -> Result<()> {
    let Some(state) = State::load(layout) else {
        println!("no cluster is running; `cargo xtask cluster up` starts one");
        return Ok(());
    };
    for (name, process) in &state.processes {
        let is_alive = if process.is_alive() { "runs" } else { "has ended" };
        println!("{name:<24} pid {:<8} {is_alive}", process.pid);
    }
    println!("files       {}", layout.node.display());
    println!("sockets     {}", layout.run.display());
    println!("cgroup      /{}", layout::CGROUP);
    println!("KUBECONFIG  {}", layout.kubeconfig("admin").display());
    println!("kubectl     {}", layout.kubectl().display());
    if !state.is_whole() {
        bail!("the cluster is not whole; `cargo xtask cluster up` starts it again");
    }
    print!("{}", kubectl::call(layout, &["get", "nodes,pods", "--all-namespaces", "--output=wide"])?);
    Ok(())
}
