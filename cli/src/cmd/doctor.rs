//! `podopsy doctor`: what works on this machine, probe by probe, and what would remedy the rest.

use std::io;

use podopsy_doctor as doctor;
use podopsy_model::probe::ProbeCheck;
use podopsy_packets as packets;
use podopsy_pods as pods;

use crate::args::{Doctor, ReportFormat};
use crate::context::Context;
use crate::exit::Verdict;
use crate::{privilege, render};

pub async fn run(context: &Context, args: Doctor) -> anyhow::Result<Verdict> {
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
    match args.output {
        ReportFormat::Json => render::json(&mut out, &report)?,
        ReportFormat::Text => render::doctor::print(&mut out, context.stdout, &report)?,
    }
    // The report is for those who lack privileges above all, so it comes first; the exit code still says it.
    privilege::require("doctor", privilege::SAMPLE_PACKETS)?;
    Ok(if report.is_sound() { Verdict::Fine } else { Verdict::Nothing })
}

async fn runtime(context: &Context) -> pods::PodsStatus {
    match context.pods().await {
        Ok(pods) => {
            // The answer is in the status: asking is what makes it current.
            let _ = pods.list().await;
            pods.status()
        }
        Err(error) => pods::PodsStatus { cri_error: Some(format!("{error:#}")), ..Default::default() },
    }
}
