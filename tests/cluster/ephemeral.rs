//! podopsy in an ephemeral container of a real kubelet, by the alpha API of Kubernetes 1.20.

use serde_json::json;

use crate::support::*;

#[test]
fn an_ephemeral_container_sees_the_failed_lookups_of_its_pod() {
    let shop = Namespace::new("debug");
    // Enough for podopsy beside the application.
    let app = container("app", &["lookup", "--every", "300", "nxdomain.example.com"], "96Mi");
    shop.create(pod("pricing", json!({ "containers": [app] })));
    kubectl(&["-n", "debug", "wait", "--for=condition=Ready", "pod/pricing", "--timeout=120s"]);
    let image = format!("--image={PODOPSY}");
    // From 1.23 on, kubectl does not know the alpha API of 1.20.
    old_kubectl(&[
        "alpha",
        "debug",
        "-n",
        "debug",
        "pricing",
        &image,
        "--target=app",
        "--container=podopsy",
        "--image-pull-policy=IfNotPresent",
        "--",
        "/podopsy",
        "dns",
        "--for",
        "5s",
    ]);
    let status = || {
        let statuses = shop.pods("pricing").first()?["status"]["ephemeralContainerStatuses"].clone();
        let state = statuses[0]["state"]["terminated"].clone();
        (!state.is_null()).then_some(state)
    };
    let state = until("end of podopsy", status, || shop.describe());
    let log = kubectl(&["-n", "debug", "logs", "pricing", "--container=podopsy"]);
    assert_ne!(state["reason"], "OOMKilled", "{state:#}\n{log}");
    assert!(log.contains("nxdomain.example.com"), "{state:#}\n{log}");
    // It does no harm.
    let app = &shop.pods("pricing")[0]["status"]["containerStatuses"][0];
    assert_eq!(app["restartCount"], 0, "{app:#}");
}
