//! The history that the agent keeps of real pods, read by the CLI and through the API.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support;
use jiff::Timestamp;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opentelemetry_proto::tonic::collector::profiles::v1development::ExportProfilesServiceRequest;
use podopsy_client::AgentClient;
use podopsy_harness::{ContainerSpec, Node, PodSpec};
use podopsy_store::{Collection, Filter, Store, StoreLimits};
use prost::Message;
use serde_json::Value;
use support::agent::until;
use support::destination::Destination;
use support::{Running, node};

const MIB: i64 = 1 << 20;

/// An agent with a history, which keeps profiles each second instead of each minute.
struct Agent {
    process: Running,
    state: PathBuf,
}

impl Agent {
    fn start(node: &Node, more: &[&str]) -> Agent {
        let [_, program] = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
        let (log, state) = (node.directory().join("agent.log"), node.directory().join("state"));
        let mut command = Command::new(program);
        command.arg("--cri-socket").arg(node.cri_socket()).arg("--state-dir").arg(&state);
        // Profiles are off unless a test asks for them by a flag.
        command.args(["--keep-every", "1s"]).args(more).env("PODOPSY_PROFILE_HZ", "0");
        let child = command.stdout(Stdio::null()).stderr(fs::File::create(&log).expect("its log")).spawn();
        let process = Running(child.expect("start the agent"));
        until("agent that records", || {
            let text = fs::read_to_string(&log).ok()?;
            assert!(!text.contains("podopsy-agent: "), "{text}");
            text.contains("recording").then_some(())
        });
        Agent { process, state }
    }

    /// Sends SIGTERM and waits for its end.
    fn stop(mut self) -> PathBuf {
        kill(Pid::from_raw(self.process.0.id() as i32), Signal::SIGTERM).expect("signal it");
        assert!(self.process.0.wait().expect("it ends").success());
        self.state
    }

    fn ask(&self, path: &str) -> Value {
        let runtime = tokio::runtime::Runtime::new().expect("a tokio runtime");
        let client = AgentClient::new(self.state.join("agent.sock"));
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let query = query.split('&').filter_map(|pair| pair.split_once('='));
        // The names are this test's own.
        let query = query.map(|(name, value)| (&*name.to_owned().leak(), value.to_owned())).collect();
        runtime.block_on(client.json(path, &query)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }
}

/// `podopsy ARGS --state-dir STATE`, by the binary that ships.
fn podopsy(node: &Node, state: &Path, args: &[&str]) -> Output {
    let [program, _] = podopsy_harness::podopsy(&|what| eprintln!("{what}")).expect("build podopsy");
    let mut command = Command::new(program);
    command.args(args).arg("--cri-socket").arg(node.cri_socket()).arg("--state-dir").arg(state);
    command.output().expect("run podopsy")
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_kill_in_a_running_pod_is_found_by_one_command() {
    let (node, image) = node();
    let agent = Agent::start(&node, &[]);
    let state = agent.state.clone();
    let nothing = podopsy(&node, &state, &["oom", "--silent", "--since", "1s", "-n", "shop"]);
    assert_eq!(nothing.status.code(), Some(1), "{}", stderr_of(&nothing));
    let container = ContainerSpec::new("api", &image)
        .command(["leak", "--child", "--step", "1MiB", "--every", "50"])
        .memory_limit(64 * MIB)
        .single_process_oom_kill();
    let began = Timestamp::now();
    let pod = PodSpec::new("shop", "orders").label("app", "orders").container(container);
    let _pod = node.run_pod(pod).expect("run the pod");
    let silent = ["oom", "--silent", "--since", "1h", "-n", "shop", "-o", "json"];
    let (known, stderr) = until("silent kill", || {
        let output = podopsy(&node, &state, &silent);
        let known: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.success() && !known["incidents"].as_array()?.is_empty())
            .then(|| (known, stderr_of(&output)))
    });
    assert!(stderr.contains(&format!("the agent at {}", state.join("agent.sock").display())), "{stderr}");
    let incident = &known["incidents"][0];
    assert_eq!((&incident["pod"]["name"], &incident["kind"]), (&"orders".into(), &"oom.incident".into()));
    assert!(incident["incident"]["verdicts"].to_string().contains("silent"), "{incident}");

    // What happened to the pod, with the kill before the incident, by a name and by labels.
    for args in [
        &["events", "shop/orders", "-o", "json"][..],
        &[
            "events",
            "-n",
            "shop",
            "-l",
            "app=orders",
            "--kind",
            "oom.kill",
            "--kind",
            "oom.incident",
            "-o",
            "json",
        ],
    ] {
        // The kernel's log has it already; the agent's event takes some seconds.
        let kinds = until("kill and incident", || {
            let output = podopsy(&node, &state, args);
            let text = String::from_utf8(output.stdout).expect("text");
            let kind = |line| serde_json::from_str::<Value>(line).expect("JSON")["kind"].clone();
            let kinds: Vec<Value> = text.lines().map(kind).collect();
            (kinds.len() >= 2).then_some(kinds)
        });
        assert_eq!(kinds, ["oom.kill", "oom.incident"], "{args:?}");
    }
    let none = podopsy(&node, &state, &["events", "shop/nothing"]);
    assert!(none.status.code() == Some(1) && none.stdout.is_empty(), "{}", stderr_of(&none));

    // Its memory up to then, in steps, by the API.
    let memory = until("memory of the pod", || {
        let page = agent.ask(&format!("/api/v1/memory?pod=orders&container=api&from={began}"));
        let found = page["memory"].as_array()?.first()?.clone();
        let largest = found["current_max_bytes"].as_array()?.iter().filter_map(Value::as_u64).max()?;
        (largest > 48 << 20).then_some(found)
    });
    assert_eq!((&memory["step_seconds"], &memory["limit_bytes"]), (&10.into(), &(64 * MIB).into()));
    assert_eq!(memory["pod"]["name"], "orders");
    let length = |column: &str| memory[column].as_array().map_or(0, Vec::len);
    for column in
        ["samples", "current_min_bytes", "current_bytes", "anon_bytes", "file_bytes", "kernel_bytes"]
    {
        assert_eq!(length(column), length("step"), "{column} of {memory}");
    }

    // Without the agent, incidents come from its store, and the CLI says so; events need the agent.
    let state = agent.stop();
    let output = podopsy(&node, &state, &silent);
    let stderr = stderr_of(&output);
    assert!(
        output.status.success() && stderr.contains("the store in") && !stderr.contains("the agent at"),
        "{stderr}"
    );
    let left: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(left["incidents"][0]["incident"]["id"], incident["incident"]["id"]);
    let output = podopsy(&node, &state, &["events"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(
        stderr_of(&output).contains("no agent answers") && stderr_of(&output).contains("--state-dir"),
        "{}",
        stderr_of(&output)
    );
}

/// `push/v1/push.proto`.
#[derive(Clone, PartialEq, Message)]
struct Push {
    #[prost(message, repeated, tag = "1")]
    series: Vec<Series>,
}

#[derive(Clone, PartialEq, Message)]
struct Series {
    #[prost(message, repeated, tag = "1")]
    labels: Vec<Label>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(bytes = "vec", tag = "1")]
    raw_profile: Vec<u8>,
}

impl Series {
    fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|label| label.name == name).map_or("", |label| &label.value)
    }
}

/// The functions of the container `desk` in the samples of a request.
fn functions_of_the_desk(request: ExportProfilesServiceRequest) -> Vec<String> {
    let tables = request.dictionary.expect("tables");
    let desks =
        request.resource_profiles.iter().filter(|one| format!("{:?}", one.resource).contains("\"desk\""));
    let profiles = desks.flat_map(|one| &one.scope_profiles).flat_map(|scope| &scope.profiles);
    let stacks =
        profiles.flat_map(|one| &one.samples).map(|one| &tables.stack_table[one.stack_index as usize]);
    let locations =
        stacks.flat_map(|one| &one.location_indices).map(|&at| &tables.location_table[at as usize]);
    let functions = locations.flat_map(|location| &location.lines).map(|line| line.function_index as usize);
    let names = functions.map(|at| tables.function_table[at].name_strindex as usize);
    names.map(|at| tables.string_table[at].clone()).collect()
}

#[test]
fn a_pods_past_profile_is_kept_without_a_request() {
    let (node, image) = node();
    let pyroscope = Destination::start(true);
    let url = format!("http://{}", pyroscope.address);
    let collector = Destination::start(true);
    let otlp = format!("http://{}", collector.address);
    let also = ["--otlp-url", &otlp, "--otlp-profiles"];
    let agent = Agent::start(&node, &[&["--profile-hz", "97", "--pyroscope-url", &url][..], &also].concat());
    let state = agent.state.clone();
    let burner = |name| ContainerSpec::new(name, &image).command(["burner"]);
    let pod = PodSpec::new("finance", "pricing").container(burner("desk"));
    let pod = node.run_pod(pod).expect("run the pod");
    let file = node.directory().join("kept.pb.gz");
    let page = until("two minutes of the pod", || {
        let page = agent.ask("/api/v1/profiles?namespace=finance&pod=pricing&container=desk");
        (page["profiles"].as_array()?.len() >= 2).then_some(page)
    });
    let facts = &page["profiles"][1]["facts"];
    assert_eq!(facts["frequency_hz"], 97);
    assert!(facts["samples"].as_u64() > Some(0) && facts["user_stacks"].as_u64() > Some(0), "{page}");
    // Pyroscope got the same by its push API.
    let pushed = until("profile of the pod at Pyroscope", || {
        let all = pyroscope.received().into_iter().inspect(|(head, _)| {
            assert!(head.starts_with("post /push.v1.pusherservice/push http/1.1\r\n"), "{head}");
        });
        let series = |(_, body): (String, Vec<u8>)| Push::decode(&*body).expect("a PushRequest").series;
        let of_pod = |series: &Series| series.label("pod") == "pricing";
        // In the first seconds of a program, its unwind table may be missing.
        let has_function = |series: &Series| {
            let read =
                podopsy_profiles::import::pprof::read(&*series.samples[0].raw_profile, Some("samples"));
            let functions = read.unwrap_or_else(|error| panic!("what was pushed: {error}")).functions;
            functions.iter().any(|name| name.contains("risk_desk"))
        };
        all.flat_map(series).find(|series| of_pod(series) && has_function(series))
    });
    let label = |name| pushed.label(name);
    assert_eq!(
        ["__name__", "service_name", "namespace", "container"].map(label),
        ["process_cpu", "finance/desk", "finance", "desk"]
    );
    // A collector got it by OTLP: the profile of one second has the function.
    until("profile of the pod at the collector", || {
        let all = collector.received().into_iter();
        let profiles = all.filter(|(head, _)| head.starts_with("post /v1development/profiles http/1.1\r\n"));
        let request =
            |(_, body): (String, Vec<u8>)| ExportProfilesServiceRequest::decode(&*body).expect("OTLP");
        let names: BTreeSet<String> = profiles.map(request).flat_map(functions_of_the_desk).collect();
        names.iter().any(|name| name.contains("risk_desk")).then_some(())
    });
    // The pod is removed; its profile is still there.
    pod.remove().expect("remove the pod");
    let output = ["profile", "finance/pricing", "--since", "10m", "-o", file.to_str().expect("a name")];
    let output = podopsy(&node, &state, &output);
    let (table, stderr) = (String::from_utf8_lossy(&output.stdout).into_owned(), stderr_of(&output));
    assert!(output.status.success() && stderr.contains("97 Hz of finance/pricing"), "{stderr}");
    let line = table.lines().find(|line| line.contains("price_options"));
    let share = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    // Its share is 60 %. The tolerance is for few samples.
    assert!(share.is_some_and(|share| (30.0..90.0).contains(&share)), "{table}\n{stderr}");
    let read = podopsy_profiles::import::pprof::read(fs::File::open(&file).expect("it"), Some("samples"));
    let read = read.unwrap_or_else(|error| panic!("the file: {error}"));
    assert!(read.functions.iter().any(|name| name.contains("risk_desk")), "{:?}", read.functions);
    // There is no profile of another pod, and the CLI says so.
    let none = podopsy(&node, &state, &["profile", "finance/nothing", "--since", "10m"]);
    assert!(
        none.status.code() == Some(1) && stderr_of(&none).contains("no profile of"),
        "{}",
        stderr_of(&none)
    );
    agent.stop();
}

#[test]
fn the_current_minute_is_kept_when_the_agent_stops() {
    support::require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let state = folder.path().join("state");
    // A profile is kept each hour: only the current one exists.
    let hour = ["--profile-hz", "97", "--keep-every", "1h", "--growth", "off", "--state-dir"];
    let arguments = [&hour[..], &[state.to_str().expect("a name")]].concat();
    let nowhere = Path::new("/nonexistent/podopsy-test.sock");
    let mut agent = support::agent::Agent::start_in(folder.path(), nowhere, &arguments);
    until("agent that samples", || agent.log().contains("keeps a profile of each container").then_some(()));
    // A busy program with few symbols: one second is some hundred samples.
    let busy = Running(Command::new("sh").args(["-c", "while :; do :; done"]).spawn().expect("start sh"));
    until("CPU time for it", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", busy.0.id())).ok()?;
        let ticks: u64 = stat.rsplit(')').next()?.split_whitespace().nth(11)?.parse().ok()?;
        (ticks >= 100).then_some(())
    });
    drop(busy);
    kill(Pid::from_raw(agent.process.0.id() as i32), Signal::SIGTERM).expect("signal it");
    assert!(agent.process.0.wait().expect("it ends").success(), "{}", agent.log());
    let log = agent.log();
    assert!(!log.contains("profile_minutes_not_named") && !log.contains("not kept"), "{log}");
    let (store, _stored_events) =
        Store::start(&state, "the test's", StoreLimits::default()).expect("its store");
    let kept = until("profile in the store", || {
        let page = store.reader().page(&Filter::all(Collection::Profiles)).ok()?;
        page.items.into_iter().next()
    });
    let facts = kept.facts.expect("facts");
    assert!(facts.contains("\"frequency_hz\":97") && !facts.contains("\"samples\":0"), "{facts}");
}
