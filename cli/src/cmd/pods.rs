//! `podopsy pods`: the pods and containers of this node, as the container runtime lists them.

use std::io;

use podopsy_pods::PodDetails;

use crate::args::{ListFormat, PodsArgs};
use crate::context::Context;
use crate::exit::CommandOutcome;
use crate::render;
use crate::terminal::note;
use crate::{privilege, selector::Selector};

pub async fn run(context: &Context, args: PodsArgs) -> anyhow::Result<CommandOutcome> {
    privilege::require_runtime("pods", context.global.cri_socket.as_deref())?;
    let directory = context.pods().await?;
    let pods = select(directory.list().await?, args.namespace.as_deref(), args.selector.as_ref());
    let mut out = io::stdout().lock();
    match args.output {
        // An empty list is printed as JSON, too.
        ListFormat::Json => render::json(&mut out, &pods)?,
        _ if pods.is_empty() => {}
        format => render::pods::print(&mut out, context.stdout, &pods, format == ListFormat::Wide)?,
    }
    if !pods.is_empty() {
        return Ok(CommandOutcome::Success);
    }
    let why = match (directory.status().cri_error, args.namespace.is_some() || args.selector.is_some()) {
        (Some(error), _) => format!("no pods: {error}"),
        (None, true) => "no pods match".to_owned(),
        (None, false) => "no pods on this node".to_owned(),
    };
    note(&why);
    Ok(CommandOutcome::NothingFound)
}

fn select(pods: Vec<PodDetails>, namespace: Option<&str>, selector: Option<&Selector>) -> Vec<PodDetails> {
    let mut pods: Vec<PodDetails> = pods
        .into_iter()
        .filter(|pod| namespace.is_none_or(|namespace| pod.pod.namespace == namespace))
        .filter(|pod| selector.is_none_or(|selector| selector.matches(&pod.pod.labels)))
        .collect();
    pods.sort_by(|a, b| (&a.pod.namespace, &a.pod.name).cmp(&(&b.pod.namespace, &b.pod.name)));
    pods
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::pods::tests::pod;

    #[test]
    fn pods_are_filtered_and_sorted() {
        let all = || vec![pod("pricing", vec![]), pod("checkout-api", vec![])];
        let names = |pods: Vec<PodDetails>| pods.into_iter().map(|pod| pod.pod.name).collect::<Vec<_>>();
        assert_eq!(names(select(all(), None, None)), ["checkout-api", "pricing"]);
        assert_eq!(names(select(all(), Some("finance"), Some(&"app=pricing".parse().unwrap()))), ["pricing"]);
        assert!(select(all(), Some("shop"), None).is_empty());
    }
}
