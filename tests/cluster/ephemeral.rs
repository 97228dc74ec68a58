//! podopsy in an ephemeral container of a real kubelet, by the alpha API of Kubernetes 1.20.

use serde_json::{Value, json};

use crate::support::*;

/// How many pods of each sort; the pod's limit is that of an ordinary small application.
const RUNS: usize = 10;
const SMALL: &str = "24Mi";

/// Starts podopsy in an ephemeral container of a pod.
fn debug(namespace: &str, pod: &str, command: &[&str]) {
    let image = format!("--image={PODOPSY}");
    // From 1.23 on, kubectl does not know the alpha API of 1.20.
    let debug = ["alpha", "debug", "-n", namespace, pod, &image, "--target=app", "--container=podopsy"];
    old_kubectl(&[&debug[..], &["--image-pull-policy=IfNotPresent", "--"], command].concat());
}

/// The state in which podopsy's container ended, and what it wrote.
fn wait_end(shop: &Namespace, pod: &str) -> (Value, String) {
    let status = || {
        let statuses = shop.pods(pod).first()?["status"]["ephemeralContainerStatuses"].clone();
        let state = statuses[0]["state"]["terminated"].clone();
        (!state.is_null()).then_some(state)
    };
    let state = until("end of podopsy", status, || shop.describe());
    (state, kubectl(&["-n", shop.0, "logs", pod, "--container=podopsy"]))
}

fn restarts(shop: &Namespace, pod: &str) -> u64 {
    let pods = shop.pods(pod);
    pods[0]["status"]["containerStatuses"][0]["restartCount"].as_u64().expect("a count")
}

#[test]
fn an_ephemeral_container_sees_the_failed_lookups_of_its_pod() {
    let shop = Namespace::new("debug");
    // Enough for podopsy beside the application.
    let app = container("app", &["lookup", "--every", "300", "nxdomain.example.com"], "96Mi");
    shop.create(pod("pricing", json!({ "containers": [app] })));
    shop.wait_ready("pricing");
    debug("debug", "pricing", &["/podopsy", "dns", "--for", "5s"]);
    let (state, log) = wait_end(&shop, "pricing");
    assert_ne!(state["reason"], "OOMKilled", "{state:#}\n{log}");
    assert!(log.contains("nxdomain.example.com"), "{state:#}\n{log}");
    // It does no harm.
    assert_eq!(restarts(&shop, "pricing"), 0, "{}", shop.describe());
}

#[test]
fn in_a_small_pod_podopsy_fits_or_refuses_and_the_application_restarts_as_without_it() {
    let shop = Namespace::new("small");
    let names = |sort: &str| (0..RUNS).map(|run| format!("{sort}-{run}")).collect::<Vec<_>>();
    let (debugged, alone) = (names("debugged"), names("alone"));
    for name in debugged.iter().chain(&alone) {
        let mut app = container("app", &["lookup", "--every", "300", "nxdomain.example.com"], SMALL);
        app["resources"]["requests"] = json!({ "memory": "4Mi", "cpu": "1m" });
        shop.create(pod(name, json!({ "containers": [app] })));
    }
    debugged.iter().chain(&alone).for_each(|name| shop.wait_ready(name));
    debugged.iter().for_each(|name| debug("small", name, &["/podopsy", "dns", "--for", "5s"]));
    let mut refused = 0;
    for name in &debugged {
        let (state, log) = wait_end(&shop, name);
        assert_ne!(state["reason"], "OOMKilled", "{name}: {state:#}\n{log}");
        let has_refused = log.contains("MiB) are left") && log.contains("on the node instead");
        assert!(has_refused || log.contains("nxdomain.example.com"), "{name}: {state:#}\n{log}");
        refused += usize::from(has_refused);
    }
    let count = |names: &[String]| names.iter().map(|name| restarts(&shop, name)).sum::<u64>();
    eprintln!(
        "{refused} of {RUNS} refused; restarts {} with podopsy, {} without",
        count(&debugged),
        count(&alone)
    );
    assert_eq!((count(&debugged), count(&alone)), (0, 0), "{}", shop.describe());
}

/// kubectl's profiles under which a container can have a packet socket.
const PROFILES: [&str; 5] = ["legacy", "general", "baseline", "netadmin", "sysadmin"];

/// Kubernetes 1.20 takes no security context for an ephemeral container, so kubectl puts the container into a copy of the pod:
/// the settings of each profile are kubectl's own.
#[test]
fn under_each_of_kubectls_profiles_podopsy_sees_the_lookups_of_the_pod() {
    let shop = Namespace::new("profiles");
    let app = container("app", &["lookup", "--every", "300", "nxdomain.example.com"], "64Mi");
    shop.create(pod("pricing", json!({ "containers": [app] })));
    shop.wait_ready("pricing");
    for profile in PROFILES {
        copy_with_podopsy("profiles", profile, profile, &["/podopsy", "dns", "--for", "5s"]);
    }
    for profile in PROFILES {
        let found = || log_of_copy("profiles", profile).filter(|log| log.contains("nxdomain.example.com"));
        until(&format!("lookup under {profile}"), found, || {
            format!("{:?}\n{}", log_of_copy("profiles", profile), shop.describe())
        });
    }
    // As root is not permitted, and the image has no other user, the kubelet does not start it at all.
    copy_with_podopsy("profiles", "restricted", "restricted", &["/podopsy", "dns"]);
    let refused = || {
        let pod = get(&["pod", "-n", "profiles", "copy-restricted"]);
        let statuses = pod["status"]["containerStatuses"].as_array()?.clone();
        let podopsy = statuses.iter().find(|one| one["name"] == "podopsy")?;
        (podopsy["state"]["waiting"]["reason"] == "CreateContainerConfigError").then_some(())
    };
    until("refusal under restricted", refused, || shop.describe());
}

#[test]
fn under_sysadmin_a_profile_and_the_kills_are_those_of_the_pod() {
    let shop = Namespace::new("sysadmin");
    let pods = ["pricing", "neighbour"];
    for name in pods {
        let burner = container("burner", &["burner"], "64Mi");
        let leaker = container("leaker", &["leak", "--fast", "--wait", "3000"], "32Mi");
        shop.create(pod(name, json!({ "containers": [burner, leaker] })));
    }
    pods.iter().for_each(|name| shop.wait_ready(name));
    let profile = ["/podopsy", "profile", "--all", "-d", "5s", "-F", "49"];
    copy_with_podopsy("sysadmin", "profile", "sysadmin", &profile);
    let found = || log_of_copy("sysadmin", "profile").filter(|log| log.contains("user stacks complete"));
    let log = until("a profile", found, || shop.describe());
    assert!(log.contains("price_options"), "{log}");

    copy_with_podopsy("sysadmin", "kills", "sysadmin", &["/podopsy", "watch", "oom", "-d", "60s"]);
    let found = || log_of_copy("sysadmin", "kills").filter(|log| log.contains("sysadmin/copy-kills"));
    let log =
        until("a kill", found, || format!("{:?}\n{}", log_of_copy("sysadmin", "kills"), shop.describe()));
    assert!(log.contains("sysadmin/copy-kills"), "{log}");
    assert!(!log.contains("neighbour"), "{log}");
}

/// Copies the pod `pricing` with podopsy in it, under one of kubectl's profiles.
fn copy_with_podopsy(namespace: &str, copy: &str, profile: &str, command: &[&str]) {
    let (copy, profile) = (format!("--copy-to=copy-{copy}"), format!("--profile={profile}"));
    let image = format!("--image={PODOPSY}");
    let debug = ["debug", "-n", namespace, "pricing", &copy, &profile, &image, "--share-processes"];
    let rest = ["--container=podopsy", "--image-pull-policy=IfNotPresent", "--quiet", "--"];
    kubectl(&[&debug[..], &rest, command].concat());
}

/// The log of podopsy in such a copy, also of its last run: it is restarted when it has ended.
fn log_of_copy(namespace: &str, copy: &str) -> Option<String> {
    let (pod, log) = (format!("copy-{copy}"), ["-n", namespace, "logs"]);
    let of = |previous: &[&str]| {
        try_kubectl(&[&log[..], &[&pod, "--container=podopsy"], previous].concat()).unwrap_or_default()
    };
    let both = of(&[]) + &of(&["--previous"]);
    (!both.is_empty()).then_some(both)
}
