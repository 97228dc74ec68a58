//! docs/walkthrough.md on a real node: each of its commands is run, and prints what the page says.
//!
//! A comment above a block of commands says what the test does with it. In `<!-- run` and `<!-- node`, each further line is a
//! fact: `prints TEXT` or `lacks TEXT`, where runs of spaces count as one. `define` blocks go before every later one; `node`
//! blocks are those that a reader runs on the node, and this test, too. Blocks with another comment, or none, are not run.

use std::time::{Duration, Instant};

use podopsy_model::EventKind;
use serde_json::Value;

use crate::support::*;

const PAGE: &str = include_str!("../../docs/walkthrough.md");
const NAMESPACE: &str = "chaos";
/// From the list of pods to the function that leaks.
const LIMIT: Duration = Duration::from_secs(60);

/// What a block's comment claims about its output.
#[derive(Debug, PartialEq)]
enum Fact<'a> {
    Prints(&'a str),
    Lacks(&'a str),
}

/// A block of commands that the page marks.
#[derive(Debug)]
struct Block<'a> {
    kind: &'a str,
    facts: Vec<Fact<'a>>,
    script: &'a str,
    /// The block without a language that follows: a sample of the output.
    sample: Option<&'a str>,
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    page.split("<!-- ").skip(1).filter_map(block).collect()
}

/// Reads a block, from its comment on.
fn block(text: &str) -> Option<Block<'_>> {
    let (comment, rest) = text.split_once("-->")?;
    let (script, rest) = rest.trim_start().strip_prefix("```sh\n")?.split_once("\n```\n")?;
    let sample = rest.trim_start().strip_prefix("```\n").and_then(|rest| Some(rest.split_once("\n```")?.0));
    let mut lines = comment.lines().map(str::trim).filter(|line| !line.is_empty());
    let kind = lines.next()?;
    let fact = |line| match str::split_once(line, ' ') {
        Some(("prints", text)) => Fact::Prints(text),
        Some(("lacks", text)) => Fact::Lacks(text),
        _ => panic!("neither prints nor lacks: {line}"),
    };
    Some(Block { kind, facts: lines.map(fact).collect(), script, sample })
}

fn one_space(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl Block<'_> {
    /// The first fact that is not so.
    fn wrong(&self, output: &str) -> Option<&Fact<'_>> {
        let output = one_space(output);
        self.facts.iter().find(|fact| match fact {
            Fact::Prints(text) => !output.contains(&one_space(text)),
            Fact::Lacks(text) => output.contains(&one_space(text)),
        })
    }
}

/// The id in the last row of `podopsy oom` that Kubernetes does not show.
fn silent_id(list: &str) -> Option<&str> {
    let row = list.lines().rfind(|line| line.contains("Running: silent"))?;
    // A date, a time, the id.
    row.split_whitespace().nth(2)
}

/// The agent and the workloads of the page, once what the page begins with has happened.
fn start() -> Agent {
    let agent = Agent::apply("base");
    let _ = try_kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found"]);
    let folder = kustomization("overlays/chaos", &[("podopsy-victims", VICTIMS)], &[]);
    let apply = || try_kubectl(&["apply", "-k", &folder.path().display().to_string()]).ok();
    until("workloads", apply, || kubectl(&["get", "namespaces"]));
    // Once it has been killed, its growth is sampled: an incident with it is the second one or a later one.
    let killed = || {
        let pods = get(&["pods", "-n", NAMESPACE, "-l", "app=checkout"]);
        let pod = pods["items"][0]["metadata"]["name"].as_str()?;
        let kills = agent.events(NAMESPACE, EventKind::OomIncident);
        let named = |event: &&podopsy_model::Event| {
            is_of(event, pod) && event.incident.as_ref().is_some_and(|one| one.growth.is_some())
        };
        kills.iter().find(named).map(drop)
    };
    let describe = || kubectl(&["-n", NAMESPACE, "describe", "pods"]);
    until("incident of checkout with its growth", killed, describe);
    // `orders` has been killed and started again.
    let restarted = || {
        let pods = get(&["pods", "-n", NAMESPACE]);
        let statuses = pods["items"].as_array()?.iter().map(|pod| &pod["status"]["containerStatuses"][0]);
        let statuses: Vec<&Value> = statuses.collect();
        let runs = |status: &&Value| status["state"]["running"].is_object();
        let has_restarted = statuses.iter().any(|status| status["restartCount"].as_u64() > Some(0));
        (has_restarted && statuses.iter().all(runs)).then_some(())
    };
    until("restart of orders", restarted, describe);
    agent
}

/// Deletes the page's workloads, also when the test fails.
struct Workloads;

impl Drop for Workloads {
    fn drop(&mut self) {
        let _ = try_kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]);
        let _ = try_kubectl(&["delete", "pods", "--all", "-n", NAMESPACE, "--grace-period=0", "--force"]);
    }
}

#[test]
fn every_command_of_the_page_prints_what_the_page_says() {
    let _workloads = Workloads;
    start();
    let (mut defined, mut id, mut ran) = (String::new(), None::<String>, 0);
    for block in blocks(PAGE) {
        match block.kind {
            "define" => defined += &format!("{}\n", block.script),
            "run" | "node" => {
                let script = block.script.replace("$ID", id.as_deref().unwrap_or("$ID"));
                let began = Instant::now();
                let output = sh(&format!("{defined}{script}"));
                println!("$ {script}\n{output}({:.1} s)\n", began.elapsed().as_secs_f64());
                assert_eq!(block.wrong(&output), None, "{script}\n{output}");
                id = silent_id(&output).map(str::to_owned).or(id);
                ran += 1;
            }
            _ => {}
        }
    }
    assert!(ran >= 10, "only {ran} blocks of commands are marked");
}

/// The blocks between `<!-- clock starts -->` and `<!-- clock stops -->`.
#[test]
fn three_commands_lead_from_the_list_of_pods_to_the_function_within_a_minute() {
    let _workloads = Workloads;
    start();
    let (before, rest) = PAGE.split_once("<!-- clock starts -->").expect("a start");
    let (timed, _) = rest.split_once("<!-- clock stops -->").expect("an end");
    let definitions = blocks(before).into_iter().filter(|block| block.kind == "define");
    let defined: String = definitions.map(|block| format!("{}\n", block.script)).collect();
    let commands = blocks(timed);
    assert_eq!(commands.len(), 3, "{commands:#?}");
    let began = Instant::now();
    let (mut id, mut last) = (None::<String>, String::new());
    for block in &commands {
        last = sh(&format!("{defined}{}", block.script.replace("$ID", id.as_deref().unwrap_or("$ID"))));
        assert_eq!(block.wrong(&last), None, "{}\n{last}", block.script);
        id = silent_id(&last).map(str::to_owned).or(id);
    }
    let took = began.elapsed();
    println!("{last}\nthree commands in {:.1} s", took.as_secs_f64());
    assert!(last.contains("copy_request") && last.contains("charge_card"), "{last}");
    assert!(took <= LIMIT, "{took:?}");
}

/// The page's samples are of an earlier run; they say the same as the facts that are checked.
#[test]
fn the_samples_on_the_page_agree_with_its_facts() {
    let blocks = blocks(PAGE);
    let with_facts: Vec<_> = blocks.iter().filter(|block| !block.facts.is_empty()).collect();
    assert!(with_facts.len() >= 10, "{blocks:#?}");
    for block in with_facts {
        let sample = block.sample.unwrap_or_else(|| panic!("no sample below {}", block.script));
        assert_eq!(block.wrong(sample), None, "{}\n{sample}", block.script);
    }
}
