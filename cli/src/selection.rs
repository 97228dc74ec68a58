//! Which pods a command is about: TARGETs, a namespace and labels, resolved on this node or against a history.

use std::sync::Arc;

use podopsy_model::target_match::find_pods;
use podopsy_model::{
    Event, KnownBy, Owner, PodCandidate, PodRef, Target, TargetMatchError, WorkloadKind, text, workloads,
};
use podopsy_pods::{ContainerDetails, PodDetails, Pods, Resolved};

use crate::args::PodFilterArgs;
use crate::exit::Refusal;
use crate::selector::Selector;

/// The least number of hex digits for a container id prefix.
const ID_PREFIX_MIN: usize = 4;

/// TARGETs, each in the namespace of `-n`, and the conditions on all pods.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    pub targets: Vec<Target>,
    pub namespace: Option<String>,
    selector: Option<Selector>,
}

impl Selection {
    /// Refuses a TARGET of another namespace than that of `-n`.
    pub fn new(targets: &[Target], pods: &PodFilterArgs) -> Result<Selection, Refusal> {
        let complete = |target: &Target| match &pods.namespace {
            Some(namespace) => target.clone().in_namespace(namespace),
            None => Ok(target.clone()),
        };
        let targets = targets.iter().map(complete).collect::<Result<_, _>>();
        Ok(Selection {
            targets: targets.map_err(|error| Refusal(error.to_string()))?,
            namespace: pods.namespace.clone(),
            selector: pods.selector.clone(),
        })
    }

    pub fn of(target: Target) -> Selection {
        Selection { targets: vec![target], ..Selection::default() }
    }

    /// The conditions alone.
    pub fn without_targets(&self) -> Selection {
        Selection { targets: Vec::new(), ..self.clone() }
    }

    /// Refuses processes: a bundle is of another time, and may be of another machine.
    pub fn require_no_process(&self) -> Result<(), Refusal> {
        match self.targets.iter().find(|target| matches!(target, Target::Pid(_))) {
            Some(target) => Err(Refusal(format!(
                "--from: {target} is a process of this machine, and the bundle may be of another: name a pod"
            ))),
            None => Ok(()),
        }
    }

    /// Whether a pod has the namespace and the labels. Without such conditions, also what is in no pod.
    pub fn has_pod(&self, pod: Option<&PodRef>) -> bool {
        let matches = |pod: &PodRef| {
            self.namespace.as_ref().is_none_or(|name| *name == pod.namespace)
                && self.selector.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
        };
        (self.namespace.is_none() && self.selector.is_none()) || pod.is_some_and(matches)
    }

    /// What it refers to on this node. Without a TARGET: all pods that the conditions select.
    pub async fn resolve(&self, pods: &Arc<Pods>) -> anyhow::Result<Vec<Resolved>> {
        let mut found = Vec::new();
        for target in &self.targets {
            found.extend(pods.resolve(target).await?);
        }
        if self.targets.is_empty() {
            found = pods
                .list()
                .await?
                .into_iter()
                .map(|pod| Resolved::Containers(pod.pod, pod.containers))
                .collect();
        }
        found.retain(|one| match one {
            Resolved::Containers(pod, _) => self.has_pod(Some(pod)),
            _ => self.has_pod(None),
        });
        if found.is_empty() {
            return Err(TargetMatchError::NotFound("no pods match".to_owned()).into());
        }
        Ok(found)
    }

    /// The targets for messages: `shop/cart, shop/db`.
    pub fn describe(&self) -> String {
        if self.targets.is_empty() {
            let selected = self.namespace.is_some() || self.selector.is_some();
            return if selected { "the selected pods".to_owned() } else { "all pods".to_owned() };
        }
        let all: Vec<String> = self.targets.iter().map(|target| text::escape(&target.to_string())).collect();
        all.join(", ")
    }
}

/// The owners that a TARGET means: what an event or a count must belong to.
#[derive(Clone, Debug, PartialEq)]
pub enum OwnerScope {
    /// A pod, of which a new one of the same name is another, or one of its containers with all its restarts.
    Pod {
        uid: String,
        container: Option<String>,
    },
    /// All pods that had the name.
    PodName {
        namespace: String,
        pod: String,
        container: Option<String>,
    },
    Workload {
        namespace: String,
        kind: WorkloadKind,
        name: String,
    },
    /// A container by its id, or by the beginning of it.
    Container(String),
    Cgroups(Vec<u64>),
    /// A cgroup and those below it.
    CgroupPath(String),
    Process(u32),
}

impl OwnerScope {
    /// For a command that records. A controller's scope includes pods that it creates later.
    pub async fn on_node(selection: &Selection, pods: &Arc<Pods>) -> anyhow::Result<Vec<OwnerScope>> {
        let mut scopes = Vec::new();
        for target in &selection.targets {
            scopes.push(OwnerScope::of_node(target, pods).await?);
        }
        Ok(scopes)
    }

    async fn of_node(target: &Target, pods: &Arc<Pods>) -> anyhow::Result<OwnerScope> {
        if let Target::Pid(pid) = *target {
            pods.owner_of_pid(pid).await?;
            return Ok(OwnerScope::Process(pid));
        }
        let first = pods.resolve(target).await?.into_iter().next();
        let first = first.ok_or_else(|| TargetMatchError::NotFound(format!("{target} is nothing here")))?;
        Ok(match (target, first) {
            (Target::Workload { kind, name, .. }, Resolved::Containers(pod, _)) => {
                OwnerScope::Workload { namespace: pod.namespace, kind: *kind, name: name.clone() }
            }
            (_, Resolved::Containers(pod, containers)) => {
                OwnerScope::Pod { container: named_container(target, &pod, &containers), uid: pod.uid }
            }
            (_, Resolved::Process(pid)) => OwnerScope::Process(pid),
            (_, Resolved::Cgroups(ids)) => OwnerScope::Cgroups(ids),
            (_, Resolved::Node) => OwnerScope::CgroupPath("/".to_owned()),
        })
    }

    /// For past events, of which `owners` are those that have a name there, and `listed` the pods that exist.
    pub fn in_history(
        target: &Target,
        owners: &[Owner],
        listed: &[PodDetails],
    ) -> Result<OwnerScope, TargetMatchError> {
        match target {
            Target::Cgroup(path) => return Ok(OwnerScope::CgroupPath(path.clone())),
            Target::Name(name) if can_be_id(name) => {
                let id = name.to_ascii_lowercase();
                let mut containers = owners.iter().filter_map(|owner| owner.container.as_ref());
                if containers.any(|container| container.id.starts_with(&id)) {
                    return Ok(OwnerScope::Container(id));
                }
            }
            _ => {}
        }
        let mut candidates: Vec<PodCandidate<'_>> = listed.iter().map(PodDetails::candidate).collect();
        for pod in owners.iter().filter_map(|owner| owner.pod.as_ref()) {
            if candidates.iter().all(|one| one.pod.uid != pod.uid || one.pod.name != pod.name) {
                candidates.push(PodCandidate { pod, note: "gone".to_owned() });
            }
        }
        let found = find_pods(target, &candidates)?;
        Ok(OwnerScope::of_pods(target, &found))
    }

    /// `found` is not empty: these pods are what `target` means.
    fn of_pods(target: &Target, found: &[&PodRef]) -> OwnerScope {
        let (namespace, pod) =
            found.first().map(|pod| (pod.namespace.clone(), pod.name.clone())).unwrap_or_default();
        match target {
            Target::Workload { kind, name, .. } => {
                OwnerScope::Workload { namespace, kind: *kind, name: name.clone() }
            }
            Target::Pod { container, .. } => {
                OwnerScope::PodName { namespace, pod, container: container.clone() }
            }
            _ => OwnerScope::PodName { namespace, pod, container: None },
        }
    }

    pub fn has_event(&self, event: &Event) -> bool {
        match self {
            OwnerScope::Process(pid) => event.process.pid == *pid,
            _ => self.has_owner(&event.owner()),
        }
    }

    /// Never true for a single process: the kernel side counts by cgroup.
    pub fn has_owner(&self, owner: &Owner) -> bool {
        let has_container = |name: &Option<String>| {
            let own = owner.container.as_ref().map(|container| &container.name);
            name.as_ref().is_none_or(|name| own == Some(name))
        };
        let is_pod = |is: &dyn Fn(&PodRef) -> bool| owner.pod.as_ref().is_some_and(is);
        match self {
            OwnerScope::Pod { uid, container } => is_pod(&|pod| pod.uid == *uid) && has_container(container),
            OwnerScope::PodName { namespace, pod: name, container } => {
                is_pod(&|pod| pod.namespace == *namespace && pod.name == *name) && has_container(container)
            }
            OwnerScope::Workload { namespace, kind, name } => {
                let is_owner =
                    |pod: &PodRef| workloads(pod).iter().any(|one| one.kind == *kind && one.name == *name);
                is_pod(&|pod| pod.namespace == *namespace && is_owner(pod))
            }
            OwnerScope::Container(id) => {
                owner.container.as_ref().is_some_and(|container| container.id.starts_with(id.as_str()))
            }
            OwnerScope::Cgroups(ids) => owner.known_by != KnownBy::Unknown && ids.contains(&owner.cgroup.id),
            OwnerScope::CgroupPath(path) => owner.cgroup.path.as_ref().is_some_and(|own| {
                own.strip_prefix(path.trim_end_matches('/'))
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            }),
            OwnerScope::Process(_) => false,
        }
    }
}

/// Whether a name can be the beginning of a container's id.
pub fn can_be_id(name: &str) -> bool {
    name.len() >= ID_PREFIX_MIN && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The container's name, if the target is one container and not its pod.
fn named_container(target: &Target, pod: &PodRef, containers: &[ContainerDetails]) -> Option<String> {
    match (target, containers) {
        (Target::Pod { container: None, .. }, _) => None,
        (Target::Name(name), _) if pod.name.starts_with(name.as_str()) => None,
        (_, [one]) => Some(one.container.name.clone()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::oom::tests::event;
    use crate::render::pods::tests::pod;

    fn selection(
        targets: &[&str],
        namespace: Option<&str>,
        selector: Option<&str>,
    ) -> Result<Selection, Refusal> {
        let targets: Vec<Target> = targets.iter().map(|text| text.parse().unwrap()).collect();
        let pods = PodFilterArgs {
            namespace: namespace.map(str::to_owned),
            all_namespaces: false,
            selector: selector.map(|text| text.parse().unwrap()),
        };
        Selection::new(&targets, &pods)
    }

    #[test]
    fn a_namespace_completes_targets_and_refuses_those_of_another() {
        let one = selection(&["cart", "deploy/web"], Some("shop"), None).unwrap();
        assert_eq!(one.describe(), "shop/cart, shop/deploy/web");
        assert!(
            selection(&["other/cart"], Some("shop"), None).unwrap_err().to_string().contains("leave one")
        );
    }

    #[test]
    fn a_bundle_has_no_processes() {
        let check = |targets: &[&str]| selection(targets, None, None).unwrap().require_no_process();
        assert!(check(&["shop/cart", "cgroup:/k"]).is_ok());
        assert!(check(&["shop/cart", "pid:1"]).unwrap_err().to_string().contains("pid:1 is a process"));
    }

    #[test]
    fn conditions_exclude_what_is_in_no_pod() {
        let pod = pod("cart", vec![]).pod;
        let has = |namespace, selector| selection(&[], namespace, selector).unwrap().has_pod(Some(&pod));
        assert!(has(None, None) && has(Some("finance"), Some("app=cart")));
        assert!(!has(Some("shop"), None) && !has(None, Some("app=x")));
        assert!(selection(&[], None, None).unwrap().has_pod(None));
        assert!(!selection(&[], Some("finance"), None).unwrap().has_pod(None));
    }

    #[test]
    fn past_events_are_found_by_name_beginning_cgroup_and_container() {
        let event = event("3f2a-1", 10);
        let owners = [event.owner()];
        let is = |target: &str| {
            let scope = OwnerScope::in_history(&target.parse().unwrap(), &owners, &[]);
            scope.map(|scope| scope.has_event(&event))
        };
        for target in
            ["3f2a", "orders", "shop/orders", "ord", "cgroup:/k/pod1", "cgroup:/k/pod1/c1/", "cgroup:/"]
        {
            assert_eq!(is(target), Ok(true), "{target}");
        }
        assert_eq!(is("cgroup:/k/pod"), Ok(false));
        for target in ["ordres", "other/orders", "deploy/orders", "3f2"] {
            assert!(matches!(is(target), Err(TargetMatchError::NotFound(_))), "{target}");
        }
    }

    #[test]
    fn a_pod_that_exists_and_has_no_events_is_found_and_one_that_is_gone_is_named_so() {
        let event = event("3f2a-1", 10);
        let listed = [pod("orders-2", vec![])];
        let scope =
            |target: &str| OwnerScope::in_history(&target.parse().unwrap(), &[event.owner()], &listed);
        assert!(!scope("orders-2").unwrap().has_event(&event));
        let error = scope("order").unwrap_err().to_string();
        assert!(
            error.contains("shop/orders (gone)") && error.contains("finance/orders-2 (not running)"),
            "{error}"
        );
    }
}
