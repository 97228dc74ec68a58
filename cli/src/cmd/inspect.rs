//! `podopsy inspect`: pid → pod, and pod → containers, processes, namespaces, limits, usage, restarts.

use std::io::{self, Write};
use std::sync::Arc;

use podopsy_model::{Owner, PodRef, Target};
use podopsy_pods::{ContainerDetails, PodDetails, Pods, Resolved};
use serde::Serialize;
use serde_json::json;

use crate::args::{InspectArgs, SheetFormat};
use crate::context::Context;
use crate::exit::{CommandOutcome, Refusal};
use crate::privilege;
use crate::process::ProcessDetails;
use crate::render::{self, inspect::Sheet};
use crate::selection::Selection;
use crate::terminal::Terminal;

/// The answer; `-o json` prints it as it is.
#[derive(Debug, Serialize)]
#[serde(untagged)]
#[expect(clippy::large_enum_variant, reason = "only one value exists")]
enum Found {
    Containers {
        pod: PodRef,
        /// Null: the runtime does not list the pod.
        sandbox: Option<Sandbox>,
        containers: Vec<ContainerDetails>,
    },
    Process {
        process: ProcessDetails,
        owner: Owner,
        /// The process's container, if the runtime lists it.
        container: Option<ContainerDetails>,
    },
    Cgroups {
        cgroups: Vec<Owner>,
    },
}

/// A [`PodDetails`] without what stands beside it.
#[derive(Debug, Serialize)]
struct Sandbox {
    id: String,
    state: String,
    created_at: Option<jiff::Timestamp>,
    ips: Vec<String>,
    netns: Option<String>,
}

pub async fn run(context: &Context, args: InspectArgs) -> anyhow::Result<CommandOutcome> {
    privilege::require_runtime("inspect", context.global.cri_socket.as_deref())?;
    let pods = context.pods().await?;
    // Without an answer of the runtime the details are missing; cgroups and /proc may still have enough.
    let listed = pods.list().await.unwrap_or_default();
    let selection = Selection::new(&args.targets, &args.pods)?;
    let found = find_all(&pods, &selection, &listed).await?;
    let mut out = io::stdout().lock();
    if print_data(&mut out, &args.sheet.output, &found, selection.targets.len() == 1)? {
        return Ok(CommandOutcome::Success);
    }
    for (index, one) in found.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        print(&mut out, context.stdout, one, &listed)?;
    }
    Ok(CommandOutcome::Success)
}

/// One TARGET that is one thing is printed as it is, everything else as a list: in a template, as `.items`.
fn print_data(
    out: &mut impl Write,
    format: &SheetFormat,
    found: &[Found],
    is_one_target: bool,
) -> io::Result<bool> {
    match (format, found) {
        (format, [one]) if is_one_target => render::data(out, format, one),
        (SheetFormat::JsonPath(_), all) => render::data(out, format, &json!({ "items": all })),
        (format, all) => render::data(out, format, &all),
    }
}

async fn find_all(
    pods: &Arc<Pods>,
    selection: &Selection,
    listed: &[PodDetails],
) -> anyhow::Result<Vec<Found>> {
    // `resolve` turns a pid inside a container into the container; here the process itself is shown first.
    if let [Target::Pid(pid)] = selection.targets[..] {
        return Ok(vec![process(pods, pid, listed).await?]);
    }
    let mut found = Vec::new();
    for resolved in selection.resolve(pods).await? {
        found.push(find(pods, resolved, listed).await?);
    }
    Ok(found)
}

async fn find(pods: &Arc<Pods>, resolved: Resolved, listed: &[PodDetails]) -> anyhow::Result<Found> {
    Ok(match resolved {
        Resolved::Containers(pod, containers) => {
            let sandbox = sandbox_of(&pod, listed).map(|pod| Sandbox {
                id: pod.sandbox_id.clone(),
                state: pod.state.clone(),
                created_at: pod.created_at,
                ips: pod.ips.clone(),
                netns: pod.netns.clone(),
            });
            Found::Containers { pod, sandbox, containers }
        }
        Resolved::Process(pid) => process(pods, pid, listed).await?,
        Resolved::Cgroups(ids) => {
            let mut cgroups = Vec::new();
            for id in ids {
                cgroups.push(pods.owner_of_cgroup(id).await);
            }
            Found::Cgroups { cgroups }
        }
        Resolved::Node => return Err(Refusal("inspect: name a pod, a container or a process".into()).into()),
    })
}

async fn process(pods: &Arc<Pods>, pid: u32, listed: &[PodDetails]) -> anyhow::Result<Found> {
    let process = ProcessDetails::read(pid)?;
    let owner = pods.owner_of_pid(pid).await?;
    let container = owner.container.as_ref().and_then(|owner| {
        let mut containers = listed.iter().flat_map(|pod| &pod.containers);
        containers.find(|container| container.container.id == owner.id).cloned()
    });
    Ok(Found::Process { process, owner, container })
}

/// By uid: a pod that was created again has the same name as the old one.
fn sandbox_of<'a>(pod: &PodRef, listed: &'a [PodDetails]) -> Option<&'a PodDetails> {
    listed.iter().find(|candidate| candidate.pod.uid == pod.uid)
}

fn print(out: &mut impl Write, terminal: Terminal, found: &Found, listed: &[PodDetails]) -> io::Result<()> {
    let mut sheet = Sheet::new(out, terminal);
    match found {
        Found::Containers { pod, containers, .. } => {
            sheet.pod(pod, sandbox_of(pod, listed))?;
            containers.iter().try_for_each(|container| sheet.container(container))
        }
        Found::Process { process, owner, container } => {
            sheet.process(process)?;
            sheet.owner(owner)?;
            if let Some(pod) = &owner.pod {
                sheet.pod(pod, sandbox_of(pod, listed))?;
            }
            container.iter().try_for_each(|container| sheet.container(container))
        }
        Found::Cgroups { cgroups } => cgroups.iter().try_for_each(|owner| sheet.owner(owner)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::pods::tests::{container, pod};

    #[test]
    fn the_json_of_a_pod_has_the_pod_and_its_containers() {
        let found = Found::Containers {
            pod: pod("pricing", vec![]).pod,
            sandbox: None,
            containers: vec![container("burner", 0, "running")],
        };
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["pod"]["name"], "pricing");
        assert_eq!(json["containers"][0]["container"]["name"], "burner");
        assert_eq!(json["containers"][0]["memory_limit_bytes"], 64 << 20);
    }

    #[test]
    fn in_a_template_one_pod_is_itself_and_several_are_items() {
        let found =
            || Found::Containers { pod: pod("pricing", vec![]).pod, sandbox: None, containers: vec![] };
        let printed = |format: &str, found: &[Found]| {
            let mut out = Vec::new();
            assert!(print_data(&mut out, &format.parse().unwrap(), found, found.len() == 1).unwrap());
            String::from_utf8(out).unwrap()
        };
        assert_eq!(printed("jsonpath={.pod.name}", &[found()]), "pricing");
        assert_eq!(printed("jsonpath={.items[*].pod.name}", &[found(), found()]), "pricing pricing");
        assert!(printed("yaml", &[found()]).starts_with("pod:\n"));
        assert!(printed("json", &[found(), found()]).starts_with('['));
    }

    #[test]
    fn a_new_pod_of_the_same_name_is_another_pod() {
        let old = pod("pricing", vec![]);
        let mut new = pod("pricing", vec![]);
        new.pod.uid = "new".into();
        new.sandbox_id = "other".into();
        let listed = [old, new.clone()];
        assert_eq!(sandbox_of(&new.pod, &listed).unwrap().sandbox_id, "other");
    }
}
