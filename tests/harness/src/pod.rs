//! Builders for pods and containers, and their translation into the CRI requests that a kubelet would send.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::cri::messages::*;

/// The quality-of-service class, which determines the pod's cgroup below `/kubepods`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    #[default]
    Burstable,
    BestEffort,
}

/// A pod's resolv.conf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl Dns {
    /// The result of `dnsPolicy: ClusterFirst`: the cluster's search domains and `ndots:5`.
    pub fn cluster(server: &str, namespace: &str) -> Self {
        Self {
            servers: vec![server.to_owned()],
            searches: [&format!("{namespace}.svc.cluster.local"), "svc.cluster.local", "cluster.local"]
                .map(str::to_owned)
                .into(),
            options: vec!["ndots:5".to_owned()],
        }
    }

    /// Adds an option, e.g. `timeout:1`.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.to_owned());
        self
    }
}

/// The description of a pod.
#[derive(Debug, Clone)]
pub struct PodSpec {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) dns: Option<Dns>,
    pub(crate) qos: Qos,
    pub(crate) cgroup_root: String,
    pub(crate) host_network: bool,
    pub(crate) host_pid: bool,
    pub(crate) share_pids: bool,
    pub(crate) memory_limit: Option<i64>,
    pub(crate) containers: Vec<ContainerSpec>,
}

impl PodSpec {
    /// A burstable pod with the cluster's DNS.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            dns: None,
            qos: Qos::default(),
            cgroup_root: String::new(),
            host_network: false,
            host_pid: false,
            share_pids: false,
            memory_limit: None,
            containers: Vec::new(),
        }
    }

    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    pub fn annotation(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.annotations.insert(key.into(), value.into());
        self
    }

    /// Replaces the cluster's resolv.conf.
    pub fn dns(mut self, dns: Dns) -> Self {
        self.dns = Some(dns);
        self
    }

    pub fn qos(mut self, qos: Qos) -> Self {
        self.qos = qos;
        self
    }

    /// A kubelet's `--cgroup-root`, such as `/custom`. The caller removes that cgroup.
    pub fn cgroup_root(mut self, root: impl Into<String>) -> Self {
        self.cgroup_root = root.into();
        self
    }

    /// `hostNetwork: true`: the node's network namespace, which the harness made; not the machine's.
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// `hostPID: true`: the machine's PID namespace.
    pub fn host_pid(mut self) -> Self {
        self.host_pid = true;
        self
    }

    /// `shareProcessNamespace: true`.
    pub fn share_pids(mut self) -> Self {
        self.share_pids = true;
        self
    }

    /// A limit, in bytes, on the pod's own cgroup, for all of its containers together.
    pub fn memory_limit(mut self, bytes: i64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    pub fn container(mut self, container: ContainerSpec) -> Self {
        self.containers.push(container);
        self
    }

    /// The pod's cgroup, in the kubelet's cgroupfs layout.
    pub(crate) fn cgroup(&self, uid: &str) -> String {
        let root = &self.cgroup_root;
        match self.qos {
            Qos::Guaranteed => format!("{root}/kubepods/pod{uid}"),
            Qos::Burstable => format!("{root}/kubepods/burstable/pod{uid}"),
            Qos::BestEffort => format!("{root}/kubepods/besteffort/pod{uid}"),
        }
    }

    fn namespaces(&self) -> NamespaceOption {
        let network = if self.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        let pid = match (self.host_pid, self.share_pids) {
            (true, _) => NamespaceMode::Node,
            (_, true) => NamespaceMode::Pod,
            _ => NamespaceMode::Container,
        };
        NamespaceOption { network: network.into(), pid: pid.into(), ipc: 0, target_id: String::new() }
    }

    fn kubernetes_labels(&self, uid: &str) -> HashMap<String, String> {
        HashMap::from([
            ("io.kubernetes.pod.name".to_owned(), self.name.clone()),
            ("io.kubernetes.pod.namespace".to_owned(), self.namespace.clone()),
            ("io.kubernetes.pod.uid".to_owned(), uid.to_owned()),
        ])
    }

    pub(crate) fn sandbox(&self, uid: &str, logs: &Path, default_dns: &str) -> PodSandboxConfig {
        let dns = self.dns.clone().unwrap_or_else(|| Dns::cluster(default_dns, &self.namespace));
        let mut labels = self.kubernetes_labels(uid);
        labels.extend(self.labels.clone());
        let mut annotations: HashMap<_, _> = self.annotations.clone().into_iter().collect();
        annotations.insert("kubernetes.io/config.source".to_owned(), "api".to_owned());
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: self.name.clone(),
                uid: uid.to_owned(),
                namespace: self.namespace.clone(),
                attempt: 0,
            }),
            hostname: if self.host_network { String::new() } else { self.name.chars().take(63).collect() },
            log_directory: logs.display().to_string(),
            dns_config: Some(DnsConfig {
                servers: dns.servers,
                searches: dns.searches,
                options: dns.options,
            }),
            labels,
            annotations,
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup(uid),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(self.namespaces()),
                    privileged: self.containers.iter().any(|container| container.privileged),
                }),
            }),
        }
    }
}

/// The description of a container.
#[derive(Debug, Clone)]
pub struct ContainerSpec {
    pub(crate) name: String,
    image: String,
    command: Vec<String>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    mounts: Vec<Mount>,
    memory_limit: Option<i64>,
    cpu_limit: Option<i64>,
    pub(crate) privileged: bool,
    read_only_root: bool,
    capabilities: Vec<String>,
    dropped: Vec<String>,
    group_kill: bool,
    ports: Vec<u16>,
    pub(crate) target: Option<String>,
}

impl ContainerSpec {
    /// A container of an image that was imported.
    pub fn new(name: impl Into<String>, image: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            image: image.into(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            mounts: Vec::new(),
            memory_limit: None,
            cpu_limit: None,
            privileged: false,
            read_only_root: false,
            capabilities: Vec::new(),
            dropped: Vec::new(),
            group_kill: true,
            ports: Vec::new(),
            target: None,
        }
    }

    /// Replaces the image's entrypoint; victims are on PATH: `["leak", "--fast"]`.
    pub fn command<S: Into<String>>(mut self, command: impl IntoIterator<Item = S>) -> Self {
        self.command = command.into_iter().map(Into::into).collect();
        self
    }

    /// Arguments after the command or the image's entrypoint.
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args = args.into_iter().map(Into::into).collect();
        self
    }

    pub fn env(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// A bind mount, read-write.
    pub fn mount(mut self, host: impl AsRef<Path>, container: impl Into<String>) -> Self {
        self.mounts.push(Mount {
            container_path: container.into(),
            host_path: host.as_ref().display().to_string(),
            readonly: false,
        });
        self
    }

    /// A bind mount, read-only.
    pub fn mount_read_only(mut self, host: impl AsRef<Path>, container: impl Into<String>) -> Self {
        self = self.mount(host, container);
        self.mounts.last_mut().expect("just pushed").readonly = true;
        self
    }

    /// In bytes.
    pub fn memory_limit(mut self, bytes: i64) -> Self {
        self.memory_limit = Some(bytes);
        self
    }

    /// In thousandths of a CPU.
    pub fn cpu_limit(mut self, millis: i64) -> Self {
        self.cpu_limit = Some(millis);
        self
    }

    /// Declares a TCP port, in the annotation that the kubelet writes for it.
    pub fn port(mut self, port: u16) -> Self {
        self.ports.push(port);
        self
    }

    pub fn privileged(mut self) -> Self {
        self.privileged = true;
        self
    }

    /// `readOnlyRootFilesystem: true`.
    pub fn read_only_root(mut self) -> Self {
        self.read_only_root = true;
        self
    }

    /// Adds a capability, written without `CAP_`, e.g. `SYS_PTRACE`.
    pub fn capability(mut self, name: impl Into<String>) -> Self {
        self.capabilities.push(name.into());
        self
    }

    /// `capabilities.drop: ["ALL"]`.
    pub fn no_capabilities(mut self) -> Self {
        self.dropped = vec!["ALL".to_owned()];
        self
    }

    /// The kubelet's `singleProcessOOMKill: true`: on v2, too, an OOM kill ends one process and not the container.
    pub fn single_process_oom_kill(mut self) -> Self {
        self.group_kill = false;
        self
    }

    /// Joins the PID namespace of another container of the pod, as `kubectl debug --target` does.
    pub fn target(mut self, container: impl Into<String>) -> Self {
        self.target = Some(container.into());
        self
    }

    /// The container's own name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The kubelet's request; `target` is the id of the container whose PID namespace it joins.
    pub(crate) fn config(
        &self,
        pod: &PodSpec,
        uid: &str,
        attempt: u32,
        target: Option<String>,
        v2: bool,
    ) -> ContainerConfig {
        let mut labels = pod.kubernetes_labels(uid);
        labels.insert("io.kubernetes.container.name".to_owned(), self.name.clone());
        let mut annotations = HashMap::from([
            ("io.kubernetes.container.restartCount".to_owned(), attempt.to_string()),
            ("io.kubernetes.container.terminationMessagePath".to_owned(), "/dev/termination-log".to_owned()),
            ("io.kubernetes.container.terminationMessagePolicy".to_owned(), "File".to_owned()),
            ("io.kubernetes.pod.terminationGracePeriod".to_owned(), "30".to_owned()),
        ]);
        let ports: Vec<String> =
            self.ports.iter().map(|port| format!(r#"{{"containerPort":{port},"protocol":"TCP"}}"#)).collect();
        if !ports.is_empty() {
            annotations.insert("io.kubernetes.container.ports".to_owned(), format!("[{}]", ports.join(",")));
        }
        let mut namespaces = pod.namespaces();
        if let Some(id) = target {
            namespaces.pid = NamespaceMode::Target.into();
            namespaces.target_id = id;
        }
        // The kubelet's default on v2 since 1.28; runc refuses the field on v1.
        let unified = if v2 {
            let group = if self.group_kill { "1" } else { "0" };
            HashMap::from([("memory.oom.group".to_owned(), group.to_owned())])
        } else {
            HashMap::new()
        };
        let resources = LinuxContainerResources {
            cpu_period: if self.cpu_limit.is_some() { 100_000 } else { 0 },
            cpu_quota: self.cpu_limit.unwrap_or(0) * 100,
            cpu_shares: self.cpu_limit.map_or(2, |millis| (millis * 1024 / 1000).max(2)),
            memory_limit_in_bytes: self.memory_limit.unwrap_or(0),
            oom_score_adj: match pod.qos {
                Qos::Guaranteed => -997,
                Qos::Burstable => 999,
                Qos::BestEffort => 1000,
            },
            unified,
        };
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: self.name.clone(), attempt }),
            image: Some(ImageSpec { image: self.image.clone() }),
            command: self.command.clone(),
            args: self.args.clone(),
            envs: self
                .env
                .iter()
                .map(|(key, value)| KeyValue { key: key.clone(), value: value.clone() })
                .collect(),
            mounts: self.mounts.clone(),
            labels,
            annotations,
            log_path: format!("{}/{attempt}.log", self.name),
            linux: Some(LinuxContainerConfig {
                resources: Some(resources),
                security_context: Some(LinuxContainerSecurityContext {
                    capabilities: Some(Capability {
                        add_capabilities: self.capabilities.clone(),
                        drop_capabilities: self.dropped.clone(),
                    }),
                    privileged: self.privileged,
                    namespace_options: Some(namespaces),
                    readonly_rootfs: self.read_only_root,
                }),
            }),
        }
    }
}
