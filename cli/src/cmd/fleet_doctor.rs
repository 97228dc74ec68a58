//! `kubectl podopsy doctor`: the doctor's report of each node, from podopsy in the agent's container.

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use podopsy_doctor::{CheckStatus, Report};
use podopsy_fleet::kubectl::{Call, Kubectl, read_bounded};
use podopsy_fleet::transport::kubectl_failure;
use podopsy_fleet::{Agent, NodeFailure, untrusted};

use crate::args::FleetDoctorArgs;
use crate::context::Context;
use crate::exit::{CommandOutcome, Refusal};
use crate::fleet::ClusterAgents;
use crate::render;
use crate::terminal::Colour;

/// The largest report.
const REPORT_BYTES_MAX: usize = 1 << 20;

pub async fn run(
    context: &Context,
    fleet: &ClusterAgents,
    args: &FleetDoctorArgs,
) -> anyhow::Result<CommandOutcome> {
    if !args.all_nodes && fleet.has_several_nodes() {
        return Err(Refusal("doctor: give --all-nodes, or one node with --node".to_owned()).into());
    }
    let kubectl = fleet.kubectl()?.clone();
    let examined = fleet.fleet.each(move |agent| examine(kubectl.clone(), agent));
    let answers = fleet.wait(examined).await;
    fleet.note_failures(&answers.failures, answers.answers.len())?;
    let reports: BTreeMap<&str, &Report> =
        answers.answers.iter().map(|answer| (answer.agent.node.as_str(), &answer.value)).collect();
    let mut out = io::stdout().lock();
    let is_data = render::data(&mut out, &args.sheet.output, &reports)?;
    for (node, report) in reports.iter().filter(|_| !is_data) {
        if fleet.has_several_nodes() {
            writeln!(out, "{}", context.stdout.paint(Colour::Bold, node))?;
            render::doctor::print_problems(&mut out, context.stdout, report)?;
        } else {
            render::doctor::print(&mut out, context.stdout, report)?;
        }
    }
    let is_sound = reports.values().all(|report| report.count(CheckStatus::Missing) == 0);
    Ok(if is_sound { CommandOutcome::Success } else { CommandOutcome::Incomplete })
}

async fn examine(kubectl: Kubectl, agent: Agent) -> Result<(String, Report), NodeFailure> {
    let fail = |reason: String| NodeFailure::new(&agent.node, reason);
    let words = ["doctor".into(), "--output=json".into()];
    let started = Call::start(kubectl.exec_command(&agent, &words, false));
    let mut call = started.map_err(|error| kubectl_failure(&agent, error))?;
    let output = read_bounded(call.child.stdout.take(), REPORT_BYTES_MAX).await.map_err(fail)?;
    // podopsy exits with 3 or 4 where something is missing, and the report says what.
    let ended = call.end().await;
    match (untrusted::parse::<Report>(&output), ended) {
        (Ok(report), _) => Ok((String::new(), report)),
        (Err(_), Err(error)) => Err(kubectl_failure(&agent, error)),
        (Err(error), Ok(())) => Err(fail(format!("its report cannot be read: {error}"))),
    }
}
