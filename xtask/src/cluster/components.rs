//! The programs of the cluster with their arguments, in the order of starting. `down` ends them from the last to the first.

use anyhow::Result;

use super::layout::{API_SERVICE, ETCD, GATEWAY, Layout, NODE, POD_RANGE, SERVICE_RANGE};
use super::process::{self, Process};
use super::{config, images, kubectl};
use crate::sh;

/// Whether a component answers; its error is shown when it does not in time.
type IsReady = fn(&Layout, Process) -> Result<()>;

/// A program that runs as long as the cluster.
pub struct Component {
    pub name: &'static str,
    arguments: Vec<String>,
    /// What depends on it is started when this succeeds.
    pub is_ready: Option<IsReady>,
}

impl Component {
    fn new(name: &'static str, arguments: impl IntoIterator<Item = String>) -> Component {
        Component { name, arguments: arguments.into_iter().collect(), is_ready: None }
    }

    fn ready_when(self, is_ready: IsReady) -> Component {
        Component { is_ready: Some(is_ready), ..self }
    }

    /// The command line, in the cluster's namespaces.
    pub fn command(&self, holder: Process) -> Vec<String> {
        process::inside(holder, self.arguments.iter().cloned())
    }
}

/// All of them.
pub fn all(layout: &Layout) -> Vec<Component> {
    vec![
        etcd(layout),
        containerd(layout).ready_when(containerd_answers),
        resolver(layout),
        api_server(layout).ready_when(api_server_answers),
        controller_manager(layout),
        scheduler(layout),
        proxy(layout),
        kubelet(layout),
    ]
}

/// `PROGRAM --name=value…` of a program of Kubernetes.
fn kubernetes(layout: &Layout, program: &'static str, options: &[(&str, String)]) -> Component {
    let options = options.iter().map(|(name, value)| format!("--{name}={value}"));
    Component::new(program, std::iter::once(layout.program(program).display().to_string()).chain(options))
}

fn etcd(layout: &Layout) -> Component {
    let program = layout.cache.join("packages/usr/bin/etcd").display().to_string();
    let options = [
        format!("--data-dir={}", layout.node.join("etcd").display()),
        format!("--listen-client-urls={ETCD}"),
        format!("--advertise-client-urls={ETCD}"),
        "--listen-peer-urls=http://127.0.0.1:23800".to_owned(),
        // A cluster of tests need not survive a power cut, and syncing is what slows it down on a busy disk.
        "--unsafe-no-fsync".to_owned(),
    ];
    Component::new("etcd", std::iter::once(program).chain(options))
}

fn containerd(layout: &Layout) -> Component {
    let file = config::containerd_file(layout).display().to_string();
    Component::new("containerd", ["containerd".to_owned(), "--config".to_owned(), file])
}

fn containerd_answers(layout: &Layout, holder: Process) -> Result<()> {
    sh::capture(&mut images::ctr(layout, holder, &["version"])?).map(drop)
}

/// The cluster's DNS, without CoreDNS: names select how it misbehaves.
fn resolver(layout: &Layout) -> Component {
    let program = images::resolver_program(layout).display().to_string();
    let arguments = [program, format!("{GATEWAY}:53"), "--mode".into(), "answer".into(), "--quiet".into()];
    Component::new("resolver", arguments)
}

fn api_server(layout: &Layout) -> Component {
    let pki = |name: &str| layout.pki(name).display().to_string();
    let text = |value: &str| value.to_owned();
    let options = [
        ("etcd-servers", text(ETCD)),
        ("secure-port", text("6443")),
        ("bind-address", text("0.0.0.0")),
        // Pods reach the API by this address.
        ("advertise-address", text(GATEWAY)),
        ("service-cluster-ip-range", text(SERVICE_RANGE)),
        ("tls-cert-file", pki("apiserver.crt")),
        ("tls-private-key-file", pki("apiserver.key")),
        ("client-ca-file", pki("ca.crt")),
        ("kubelet-certificate-authority", pki("ca.crt")),
        ("kubelet-client-certificate", pki("apiserver-kubelet-client.crt")),
        ("kubelet-client-key", pki("apiserver-kubelet-client.key")),
        ("kubelet-preferred-address-types", text("Hostname,InternalIP")),
        ("service-account-issuer", format!("https://{API_SERVICE}")),
        ("service-account-key-file", pki("sa.key")),
        ("service-account-signing-key-file", pki("sa.key")),
        ("authorization-mode", text("Node,RBAC")),
        ("enable-admission-plugins", text("NodeRestriction")),
        ("allow-privileged", text("true")),
        ("feature-gates", text("EphemeralContainers=true")),
    ];
    kubernetes(layout, "kube-apiserver", &options)
}

fn api_server_answers(layout: &Layout, _holder: Process) -> Result<()> {
    kubectl::call(layout, &["get", "--raw", "/readyz"]).map(drop)
}

fn kubeconfig(layout: &Layout, user: &str) -> (&'static str, String) {
    ("kubeconfig", layout.kubeconfig(user).display().to_string())
}

fn controller_manager(layout: &Layout) -> Component {
    let options = [
        kubeconfig(layout, "kube-controller-manager"),
        ("root-ca-file", layout.pki("ca.crt").display().to_string()),
        ("service-account-private-key-file", layout.pki("sa.key").display().to_string()),
        ("use-service-account-credentials", "true".to_owned()),
        ("leader-elect", "false".to_owned()),
    ];
    kubernetes(layout, "kube-controller-manager", &options)
}

fn scheduler(layout: &Layout) -> Component {
    let options = [kubeconfig(layout, "kube-scheduler"), ("leader-elect", "false".to_owned())];
    kubernetes(layout, "kube-scheduler", &options)
}

fn proxy(layout: &Layout) -> Component {
    let options = [
        kubeconfig(layout, "kube-proxy"),
        ("hostname-override", NODE.to_owned()),
        ("proxy-mode", "iptables".to_owned()),
        ("cluster-cidr", POD_RANGE.to_owned()),
        // The table's size is not part of the network namespace.
        ("conntrack-max-per-core", "0".to_owned()),
        ("conntrack-tcp-timeout-established", "0s".to_owned()),
        ("conntrack-tcp-timeout-close-wait", "0s".to_owned()),
        ("oom-score-adj", "0".to_owned()),
    ];
    kubernetes(layout, "kube-proxy", &options)
}

fn kubelet(layout: &Layout) -> Component {
    let options = [
        ("config", config::kubelet_file(layout).display().to_string()),
        kubeconfig(layout, "kubelet"),
        ("container-runtime", "remote".to_owned()),
        ("container-runtime-endpoint", format!("unix://{}", layout.socket().display())),
        ("hostname-override", NODE.to_owned()),
        ("node-ip", GATEWAY.to_owned()),
    ];
    kubernetes(layout, "kubelet", &options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_depends_on_a_component_is_started_after_it() {
        let layout = Layout { cache: "/cache".into(), node: "/cache/node".into(), run: "/run/c".into() };
        let names: Vec<_> = all(&layout).iter().map(|component| component.name).collect();
        let at = |name: &str| names.iter().position(|one| *one == name).unwrap();
        assert!(at("etcd") < at("kube-apiserver") && at("kube-apiserver") < at("kubelet"));
        assert!(at("containerd") < at("kubelet"));
    }

    #[test]
    fn no_component_listens_for_clients_without_authentication() {
        let layout = Layout { cache: "/cache".into(), node: "/cache/node".into(), run: "/run/c".into() };
        let arguments = api_server(&layout).arguments;
        assert!(arguments.iter().any(|one| one.starts_with("--client-ca-file=")));
        assert!(!arguments.iter().any(|one| one.contains("insecure")), "{arguments:?}");
    }
}
