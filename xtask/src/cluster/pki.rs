//! The cluster's authority, the certificates of its programs, and their kubeconfigs. Made for each cluster.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::layout::{API_SERVICE, GATEWAY, Layout, NODE};
use crate::sh;

/// Users with a client certificate: the name of the files, the groups and the user.
const USERS: [(&str, &str); 5] = [
    ("admin", "/O=system:masters/CN=admin"),
    ("kube-controller-manager", "/CN=system:kube-controller-manager"),
    ("kube-scheduler", "/CN=system:kube-scheduler"),
    ("kube-proxy", "/CN=system:kube-proxy"),
    ("kubelet", "/O=system:nodes/CN=system:node:node1"),
];
/// Programs that only prove who they are: the API server to its clients and to the kubelet, the kubelet to the API server.
const SERVERS: [(&str, &str); 3] = [
    ("apiserver", "/CN=kube-apiserver"),
    ("apiserver-kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client"),
    ("kubelet-server", "/CN=node1"),
];

/// Makes everything.
pub fn create(layout: &Layout) -> Result<()> {
    sh::progress("making the cluster's certificates");
    let extensions = format!(
        "[req]\ndistinguished_name = name\n[name]\n[ca]\nbasicConstraints = critical,CA:TRUE\n[leaf]\n\
         basicConstraints = CA:FALSE\nextendedKeyUsage = serverAuth,clientAuth\n\
         subjectAltName = DNS:{NODE},DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,\
         DNS:kubernetes.default.svc,IP:127.0.0.1,IP:{GATEWAY},IP:{API_SERVICE}\n"
    );
    fs::write(layout.pki("openssl.cnf"), extensions).context("write openssl.cnf")?;
    certificate(layout, "ca", "/CN=podopsy-cluster", "ca")?;
    for (name, subject) in USERS.iter().chain(&SERVERS) {
        certificate(layout, name, subject, "leaf")?;
    }
    for (user, _) in USERS {
        fs::write(layout.kubeconfig(user), kubeconfig(layout, user))
            .with_context(|| format!("write the kubeconfig of {user}"))?;
    }
    // Signs the tokens of ServiceAccounts.
    let key = layout.pki("sa.key");
    sh::capture(Command::new("openssl").args(["genrsa", "-out"]).arg(key).arg("2048")).map(drop)
}

fn certificate(layout: &Layout, name: &str, subject: &str, extensions: &str) -> Result<()> {
    let file = |suffix: &str| layout.pki(&format!("{name}.{suffix}"));
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]);
    command.args(["-days", "30", "-subj", subject, "-extensions", extensions, "-config"]);
    command.arg(layout.pki("openssl.cnf"));
    command.arg("-keyout").arg(file("key")).arg("-out").arg(file("crt"));
    if extensions == "leaf" {
        command.arg("-CA").arg(layout.pki("ca.crt")).arg("-CAkey").arg(layout.pki("ca.key"));
    }
    sh::capture(&mut command).with_context(|| format!("make the certificate of {name}")).map(drop)
}

fn kubeconfig(layout: &Layout, user: &str) -> String {
    let (ca, certificate, key) =
        (layout.pki("ca.crt"), layout.pki(&format!("{user}.crt")), layout.pki(&format!("{user}.key")));
    serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "podopsy-cluster",
        "clusters": [{ "name": "podopsy-cluster", "cluster": {
            "server": "https://127.0.0.1:6443", "certificate-authority": ca,
        }}],
        "users": [{ "name": user, "user": { "client-certificate": certificate, "client-key": key }}],
        "contexts": [{ "name": "podopsy-cluster", "context": { "cluster": "podopsy-cluster", "user": user }}],
    })
    .to_string()
}
