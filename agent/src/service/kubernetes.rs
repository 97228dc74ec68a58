//! Whether Kubernetes Events are made, and where the API server is: as each pod is told, or as one is told by flags.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, ensure};
use jiff::Timestamp;

use podopsy_deliver::kubernetes::{Call, Dropped, Recorder, of_event, of_incident};
use podopsy_deliver::{self as deliver, Courier, Header, Settings};
use podopsy_model::metric::Family;
use podopsy_model::{Event, Losses, PodIncident};

/// Where the kubelet puts a service account's files.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const AUTHORITY: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

#[derive(Clone, Debug, Default, clap::Args)]
pub struct KubernetesArgs {
    /// Tell OOM kills, streaks of failed lookups, and what lines up with them as Kubernetes Events on the pod, where kubectl
    /// describe pod shows them. Needs rights: manifests/components/kubernetes-events
    #[arg(long)]
    kubernetes_events: bool,
    /// The API server, where this is no pod: https://HOST:6443
    #[arg(long, value_name = "URL")]
    kubernetes_api: Option<String>,
    /// The file with the token for it, read again for each request; the service account's otherwise
    #[arg(long, value_name = "FILE")]
    kubernetes_token: Option<PathBuf>,
    /// The certificate authorities (PEM) that it is believed by; the service account's otherwise
    #[arg(long, value_name = "FILE")]
    kubernetes_ca: Option<PathBuf>,
}

/// Events on pods, under way.
pub struct Kubernetes {
    courier: Courier<Call>,
    recorder: Recorder,
    dropped: Arc<Dropped>,
}

impl KubernetesArgs {
    /// None: it is not wanted. `common`: what holds for each destination.
    pub(super) fn settings(&self, common: Settings) -> anyhow::Result<Option<Settings>> {
        if !self.kubernetes_events {
            let given = [
                ("api", self.kubernetes_api.as_ref().is_some_and(|api| !api.is_empty())),
                ("token", self.kubernetes_token.is_some()),
                ("ca", self.kubernetes_ca.is_some()),
            ];
            for (name, is_set) in given {
                ensure!(
                    !is_set,
                    "kubernetes-{name} is set, and kubernetes-events is not: set both, or neither"
                );
            }
            return Ok(None);
        }
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = match self.kubernetes_api.as_ref().filter(|api| !api.is_empty()) {
            Some(api) => api.clone(),
            None => {
                let hint = "kubernetes-events is set, and this is no pod (there is no KUBERNETES_SERVICE_HOST): \
                            kubernetes-api names the API server";
                let host = variable("KUBERNETES_SERVICE_HOST").context(hint)?;
                let port = variable("KUBERNETES_SERVICE_PORT_HTTPS").or(variable("KUBERNETES_SERVICE_PORT"));
                in_cluster(&host, port.as_deref().unwrap_or("443"))
            }
        };
        let parsed = deliver::url(&url).context("kubernetes-api")?;
        ensure!(
            parsed.query().is_none() && parsed.fragment().is_none(),
            "kubernetes-api: paths are added to it, so it has neither ? nor #"
        );
        if parsed.scheme() == "http" {
            tracing::warn!("the token goes over the network in the clear: kubernetes-api is http://");
        }
        let token = self.kubernetes_token.clone().unwrap_or_else(|| TOKEN.into());
        ensure!(
            token.exists(),
            "there is no token at {}: manifests/components/kubernetes-events mounts the service account's, or \
             kubernetes-token names another file",
            token.display()
        );
        let standard = Path::new(AUTHORITY);
        let authority = self.kubernetes_ca.clone().or_else(|| standard.exists().then(|| standard.into()));
        Ok(Some(Settings {
            url: url.trim_end_matches('/').to_owned(),
            headers: vec![Header::bearer(&token)],
            certificate_authority: authority,
            // Others' certificates are not the API server's business.
            identity: None,
            // There is no request for many.
            batch_items: 1,
            ..common
        }))
    }
}

fn in_cluster(host: &str, port: &str) -> String {
    // An IPv6 address.
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    format!("https://{host}:{port}")
}

impl Kubernetes {
    pub fn new(courier: Courier<Call>, node: &str) -> Kubernetes {
        let recorder = Recorder::new(node);
        let dropped = recorder.dropped();
        Kubernetes { courier, recorder, dropped }
    }

    pub fn courier(&self) -> &Courier<Call> {
        &self.courier
    }

    pub fn event(&mut self, event: &Event) {
        let call = of_event(event).and_then(|saying| self.recorder.see(saying, Timestamp::now()));
        call.into_iter().for_each(|call| self.courier.offer(call));
    }

    pub fn incident(&mut self, incident: &PodIncident) {
        for saying in of_incident(incident) {
            if let Some(call) = self.recorder.see(saying, Timestamp::now()) {
                self.courier.offer(call);
            }
        }
    }

    /// Time has passed.
    pub fn round(&mut self) {
        self.recorder.due(Timestamp::now()).into_iter().for_each(|call| self.courier.offer(call));
    }

    /// There will be no more; what is left is to be delivered.
    pub fn finish(mut self) -> Courier<Call> {
        self.recorder.finish(Timestamp::now()).into_iter().for_each(|call| self.courier.offer(call));
        self.courier
    }

    pub fn dropped(&self) -> Arc<Dropped> {
        self.dropped.clone()
    }

    pub fn losses(&self) -> Losses {
        let dropped = by_reason(&self.dropped);
        let dropped = dropped.map(|(reason, count)| (format!("kubernetes_events_{reason}"), count));
        std::iter::once(self.courier.ledger().loss()).chain(dropped).filter(|(_, count)| *count > 0).collect()
    }
}

fn by_reason(dropped: &Dropped) -> [(&'static str, u64); 2] {
    [("limited", dropped.limited.load(Relaxed)), ("unnamed", dropped.unnamed.load(Relaxed))]
}

/// What was never offered to the API server.
pub fn family(dropped: &Dropped) -> Family {
    let help =
        "Kubernetes Events that are not made: a pod's requests were used up, or its name is not known.";
    let mut family = Family::counter("podopsy_kubernetes_events_dropped", help);
    for (reason, count) in by_reason(dropped) {
        family.count(vec![("reason", reason.to_owned())], count);
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_server_is_where_a_pod_is_told() {
        assert_eq!(in_cluster("10.96.0.1", "443"), "https://10.96.0.1:443");
        assert_eq!(in_cluster("fd00::1", "6443"), "https://[fd00::1]:6443");
    }

    #[test]
    fn settings_that_cannot_be_say_what_would_mend_them() {
        let of = |args: &KubernetesArgs| args.settings(Settings::new(""));
        let on = KubernetesArgs { kubernetes_events: true, ..Default::default() };
        let api = |url: &str| KubernetesArgs { kubernetes_api: Some(url.into()), ..on.clone() };
        assert!(of(&KubernetesArgs::default()).unwrap().is_none());
        let off = KubernetesArgs { kubernetes_events: false, ..api("https://a") };
        for (args, words) in [
            (off, "kubernetes-events is not"),
            (api("a:6443"), "must begin with http"),
            (api("https://a/?b"), "neither ? nor #"),
            (api("https://a"), "manifests/components/kubernetes-events mounts"),
        ] {
            let said = format!("{:#}", of(&args).unwrap_err());
            assert!(said.contains(words), "{said}");
        }
        let token = tempfile::NamedTempFile::new().unwrap();
        let args = KubernetesArgs { kubernetes_token: Some(token.path().into()), ..api("https://a/") };
        let settings = of(&args).unwrap().unwrap();
        assert_eq!((settings.url.as_str(), settings.batch_items), ("https://a", 1));
    }
}
