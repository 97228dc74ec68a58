//! The agent as a DaemonSet: its rights, and its update.

use podopsy_model::{Detail, EventKind};
use serde_json::json;

use crate::support::*;

/// `kubectl auth can-i`: it exits with 1 for "no".
fn can(account: &str, question: &[&str]) -> String {
    let identity = format!("--as=system:serviceaccount:{account}");
    let groups = ["--as-group=system:serviceaccounts", "--as-group=system:authenticated"];
    let arguments = [&["auth", "can-i"], question, &[&identity], &groups].concat();
    match try_kubectl(&arguments) {
        Ok(answer) => answer.trim().to_owned(),
        Err(error) if error.trim().is_empty() || error.contains("exit code 1") => "no".to_owned(),
        Err(error) => panic!("kubectl {}: {error}", arguments.join(" ")),
    }
}

#[test]
fn the_base_is_ready_and_its_service_account_has_no_rights() {
    let agent = Agent::apply("base");
    let pod = get(&["pod", "-n", "podopsy", &agent.pod()]);
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!((&status["ready"], &status["restartCount"]), (&true.into(), &0.into()), "{status:#}");
    // No token is mounted, neither the automatic one nor another.
    let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().expect("mounts");
    let tokens = mounts.iter().filter(|mount| mount["mountPath"].as_str().unwrap_or("").contains("secrets"));
    assert_eq!(tokens.count(), 0, "{mounts:?}");

    let account = "podopsy:podopsy-agent";
    for question in [
        ["list", "pods"],
        ["get", "secrets"],
        ["get", "nodes"],
        ["create", "events"],
        ["list", "configmaps"],
        ["create", "pods/exec"],
        ["*", "*"],
    ] {
        assert_eq!(can(account, &[question[0], question[1], "--all-namespaces"]), "no", "{question:?}");
    }
    // The rights of every account: to ask for its own, and to read the API's description.
    let list = can(account, &["--list"]);
    let granted = list.lines().skip(1).filter(|line| !line.starts_with(' ') && !line.trim().is_empty());
    let others: Vec<_> = granted.filter(|line| !line.starts_with("selfsubject")).collect();
    assert!(others.is_empty(), "{others:?}\n{list}");
}

#[test]
fn with_events_the_service_account_may_write_events_and_read_nothing() {
    Agent::apply("overlays/kubernetes-events");
    let account = "podopsy:podopsy-agent";
    for verb in ["create", "patch"] {
        assert_eq!(can(account, &[verb, "events.events.k8s.io", "-n", "finance"]), "yes", "{verb}");
    }
    for verb in ["get", "list", "watch", "delete", "update"] {
        assert_eq!(can(account, &[verb, "events.events.k8s.io", "-n", "finance"]), "no", "{verb}");
    }
    assert_eq!(can(account, &["list", "pods", "--all-namespaces"]), "no");
    // The base's account has them no more, once the objects are removed.
    kubectl(&["delete", "clusterrolebinding,clusterrole", "podopsy-agent-events"]);
    assert_eq!(can(account, &["create", "events.events.k8s.io", "-n", "finance"]), "no");
}

#[test]
fn an_update_of_the_agent_loses_no_kill() {
    let agent = Agent::apply("base");
    let shop = Namespace::new("update");
    // A child is killed every second or so, and the container runs on: Kubernetes counts nothing.
    let leak = ["leak", "--child", "--times", "30", "--wait", "2000", "--every", "40", "--step", "1MiB"];
    let spec = json!({ "restartPolicy": "Never", "containers": [container("app", &leak, "32Mi")] });
    shop.create(pod("workers", spec));
    agent.wait_event("update", EventKind::OomKill, "first kill", |event| is_of(event, "workers"));
    let old = agent.pod();
    Agent::try_apply("base", PODOPSY_NEXT).expect("apply the other image");
    Agent::wait_rolled_out();
    assert_ne!(agent.pod(), old);
    let ended = || {
        let pod = shop.pods("workers").first()?.clone();
        (pod["status"]["phase"] == "Succeeded").then_some(())
    };
    until("end of the workers", ended, || shop.describe());

    // All kills are in the history once: by the old agent, by the new one, and those in between from the kernel's log.
    let count = || {
        let kills = agent.events("update", EventKind::OomKill);
        let mut pids: Vec<_> = kills.iter().map(|kill| kill.process.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        assert_eq!(pids.len(), kills.len(), "a kill is duplicated: {kills:#?}");
        (kills.len() == 30).then_some(kills)
    };
    let explain = || {
        let kills = agent.events("update", EventKind::OomKill);
        format!("{} of 30 kills: {kills:#?}\n{}", kills.len(), Agent::describe())
    };
    let kills = until("set of 30 kills", count, explain);
    let recovered = |detail: &Detail| matches!(detail, Detail::Oom(kill) if kill.recovered);
    println!(
        "{} of them are from the kernel's log",
        kills.iter().filter(|one| recovered(&one.detail)).count()
    );
    Agent::apply("base");
}
