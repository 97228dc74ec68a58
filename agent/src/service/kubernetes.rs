//! The flags for Kubernetes Events, the address of the API server, and the export itself.
//!
//! The API server's address comes from the environment that Kubernetes sets in each pod, or from a flag.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, ensure};
use jiff::Timestamp;

use podopsy_deliver::kubernetes::{
    DroppedEvents, EventWrite, PodNotice, SeriesTracker, notice_from_event, notices_from_incident,
};
use podopsy_deliver::{Destination, DestinationSettings, ExportHeader, parse_url};
use podopsy_model::metric::MetricFamily;
use podopsy_model::{Event, Losses, PodIncident};

/// The files of the service account, as the kubelet mounts them.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const AUTHORITY: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

#[derive(Clone, Debug, Default, clap::Args)]
pub struct KubernetesArgs {
    /// Report OOM kills, streaks of failed lookups, and correlations as Kubernetes Events on the pod, where kubectl describe
    /// pod shows them. Needs permissions: manifests/components/kubernetes-events
    #[arg(long)]
    kubernetes_events: bool,
    /// The API server, if the agent does not run in a pod: https://HOST:6443
    #[arg(long, value_name = "URL")]
    kubernetes_api: Option<String>,
    /// The file with the token for the API server, read for each request. The default is the service account's
    #[arg(long, value_name = "FILE")]
    kubernetes_token: Option<PathBuf>,
    /// The certificate authorities (PEM) for the API server. The default are the service account's
    #[arg(long, value_name = "FILE")]
    kubernetes_ca: Option<PathBuf>,
}

/// The running export of Kubernetes Events.
pub struct KubernetesExport {
    destination: Destination<EventWrite>,
    tracker: SeriesTracker,
    dropped: Arc<DroppedEvents>,
}

impl KubernetesArgs {
    /// The destination's settings. None: Kubernetes Events are not enabled. `common` are the settings of all destinations.
    pub(super) fn settings(
        &self,
        common: DestinationSettings,
    ) -> anyhow::Result<Option<DestinationSettings>> {
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
                let host = variable("KUBERNETES_SERVICE_HOST").context(
                    "kubernetes-events is set, and the agent does not run in a pod (KUBERNETES_SERVICE_HOST is not \
                     set): set kubernetes-api to the API server's URL",
                )?;
                let port = variable("KUBERNETES_SERVICE_PORT_HTTPS").or(variable("KUBERNETES_SERVICE_PORT"));
                in_cluster_url(&host, port.as_deref().unwrap_or("443"))
            }
        };
        let parsed = parse_url(&url).context("kubernetes-api")?;
        ensure!(
            parsed.query().is_none() && parsed.fragment().is_none(),
            "kubernetes-api: paths are appended to the URL, so it must have neither ? nor #"
        );
        if parsed.scheme() == "http" {
            tracing::warn!("sends the token without encryption, because kubernetes-api is http://");
        }
        let token = self.kubernetes_token.clone().unwrap_or_else(|| TOKEN.into());
        ensure!(
            token.exists(),
            "there is no token at {}: apply manifests/components/kubernetes-events, which mounts the service account's, \
             or set kubernetes-token to another file",
            token.display()
        );
        let standard = Path::new(AUTHORITY);
        let authority = self.kubernetes_ca.clone().or_else(|| standard.exists().then(|| standard.into()));
        Ok(Some(DestinationSettings {
            url: url.trim_end_matches('/').to_owned(),
            headers: vec![ExportHeader::bearer(&token)],
            certificate_authority: authority,
            // The client certificate is for the other destinations only.
            identity: None,
            // The API has no request for several Events.
            batch_items: 1,
            ..common
        }))
    }
}

fn in_cluster_url(host: &str, port: &str) -> String {
    // An IPv6 address needs brackets.
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    format!("https://{host}:{port}")
}

impl KubernetesExport {
    pub fn new(destination: Destination<EventWrite>, node: &str) -> KubernetesExport {
        let tracker = SeriesTracker::new(node);
        let dropped = tracker.dropped();
        KubernetesExport { destination, tracker, dropped }
    }

    pub fn destination(&self) -> &Destination<EventWrite> {
        &self.destination
    }

    pub fn offer_event(&mut self, event: &Event) {
        if let Some(notice) = notice_from_event(event) {
            self.offer_notice(notice);
        }
    }

    pub fn offer_incident(&mut self, incident: &PodIncident) {
        notices_from_incident(incident).into_iter().for_each(|notice| self.offer_notice(notice));
    }

    fn offer_notice(&mut self, notice: PodNotice) {
        if let Some(write) = self.tracker.add(notice, Timestamp::now()) {
            self.destination.offer(write);
        }
    }

    /// Call this once a second. Offers the updates that are due.
    pub fn tick(&mut self) {
        self.tracker.due(Timestamp::now()).into_iter().for_each(|write| self.destination.offer(write));
    }

    /// Offers the final updates. The caller must close the destination.
    pub fn finish(mut self) -> Destination<EventWrite> {
        self.tracker.finish(Timestamp::now()).into_iter().for_each(|write| self.destination.offer(write));
        self.destination
    }

    pub fn dropped(&self) -> Arc<DroppedEvents> {
        self.dropped.clone()
    }

    pub fn losses(&self) -> Losses {
        let dropped = dropped_by_reason(&self.dropped);
        let dropped = dropped.map(|(reason, count)| (format!("kubernetes_events_{reason}"), count));
        let export = std::iter::once(self.destination.stats().loss());
        export.chain(dropped).filter(|(_, count)| *count > 0).collect()
    }
}

fn dropped_by_reason(dropped: &DroppedEvents) -> [(&'static str, u64); 2] {
    [("limited", dropped.limited.load(Relaxed)), ("unnamed", dropped.unnamed.load(Relaxed))]
}

/// The counter of Kubernetes Events that were never offered to the API server.
pub fn family(dropped: &DroppedEvents) -> MetricFamily {
    let help =
        "Kubernetes Events that were not written: the pod had no requests left, or its name is not known.";
    let mut family = MetricFamily::counter("podopsy_kubernetes_events_dropped", help);
    for (reason, count) in dropped_by_reason(dropped) {
        family.count(vec![("reason", reason.to_owned())], count);
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_servers_url_is_built_from_the_pods_environment() {
        assert_eq!(in_cluster_url("10.96.0.1", "443"), "https://10.96.0.1:443");
        assert_eq!(in_cluster_url("fd00::1", "6443"), "https://[fd00::1]:6443");
    }

    #[test]
    fn the_error_of_an_invalid_setting_has_a_remedy() {
        let of = |args: &KubernetesArgs| args.settings(DestinationSettings::new(""));
        let on = KubernetesArgs { kubernetes_events: true, ..Default::default() };
        let api = |url: &str| KubernetesArgs { kubernetes_api: Some(url.into()), ..on.clone() };
        assert!(of(&KubernetesArgs::default()).unwrap().is_none());
        let off = KubernetesArgs { kubernetes_events: false, ..api("https://a") };
        for (args, message) in [
            (off, "kubernetes-events is not"),
            (api("a:6443"), "must begin with http"),
            (api("https://a/?b"), "neither ? nor #"),
            (api("https://a"), "apply manifests/components/kubernetes-events"),
        ] {
            let error = format!("{:#}", of(&args).unwrap_err());
            assert!(error.contains(message), "{error}");
        }
        let token = tempfile::NamedTempFile::new().unwrap();
        let args = KubernetesArgs { kubernetes_token: Some(token.path().into()), ..api("https://a/") };
        let settings = of(&args).unwrap().unwrap();
        assert_eq!((settings.url.as_str(), settings.batch_items), ("https://a", 1));
    }
}
