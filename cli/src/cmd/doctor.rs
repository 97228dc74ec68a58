//! `podopsy doctor`: what works on this machine, probe by probe, and what would remedy the rest.

use std::io;

use podopsy_doctor as doctor;
use podopsy_model::probe::ProbeCheck;
use podopsy_packets as packets;
use podopsy_pods as pods;

use crate::args::DoctorArgs;
use crate::context::Context;
use crate::exit::CommandOutcome;
use crate::{privilege, render};

pub async fn run(context: &Context, args: DoctorArgs) -> anyhow::Result<CommandOutcome> {
    let mut probes = podopsy_probes::check().await;
    probes.push(ProbeCheck {
        name: "dns-socket".to_owned(),
        outcome: packets::check(),
        remedy: Some(
            "kubectl debug --profile=netadmin; securityContext.capabilities.add: [\"NET_RAW\"]".to_owned(),
        ),
    });
    let report = doctor::report(probes, &runtime(context).await);
    let mut out = io::stdout().lock();
    if !render::data(&mut out, &args.sheet.output, &report)? {
        render::doctor::print(&mut out, context.stdout, &report)?;
    }
    // The report helps most where privileges are missing, so it is printed before they are checked.
    privilege::require("doctor", privilege::SAMPLE_PACKETS)?;
    Ok(if report.is_sound() { CommandOutcome::Success } else { CommandOutcome::Incomplete })
}

async fn runtime(context: &Context) -> pods::PodsStatus {
    match context.pods().await {
        Ok(pods) => {
            // Listing updates the status; its result is not needed.
            let _ = pods.list().await;
            pods.status()
        }
        Err(error) => pods::PodsStatus { cri_error: Some(format!("{error:#}")), ..Default::default() },
    }
}
