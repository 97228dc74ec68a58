//! What a kernel cannot do, and why: the only place where a failing test may be no failure.
//!
//! A test that is listed by its name is run all the same: if it passes, the entry is wrong, and the table says so.
//! What is listed with a `*` (`pods::*`) is not run: it would only take its time.

/// An entry of the list.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// A test's full name, or how the names begin and a `*`.
    pub tests: &'static str,
    /// A kernel's name, or a trait of the machine: `cgroup v1`, `emulated`.
    on: &'static str,
    pub why: &'static str,
}

const NO_CONTAINERS: &str = "Debian 12's runc 1.1.5 starts no container on this kernel \
                             (\"waiting for init preliminary setup: read init-p: connection reset by peer\")";

const COMPILERS: &str = "its programs are compiled by Go, rustc and g++ as it runs, which takes an emulated machine longer \
                         than a test may";

const LIST: &[Entry] = &[
    Entry {
        tests: "autopsy::a_group_kill_is_one_incident_with_five_victims",
        on: "cgroup v1",
        why: "memory.oom.group is of cgroup v2",
    },
    Entry { tests: "autopsy::a_silent_child*", on: "5.10.218", why: NO_CONTAINERS },
    Entry { tests: "autopsy::the_pods_limit*", on: "5.10.218", why: NO_CONTAINERS },
    Entry { tests: "autopsy::without_any_recorder*", on: "5.10.218", why: NO_CONTAINERS },
    Entry { tests: "clients::*", on: "emulated", why: COMPILERS },
    Entry { tests: "lookups::a_pods_lookup*", on: "5.10.218", why: NO_CONTAINERS },
    Entry {
        tests: "signal::a_cgroup_that_is_killed_whole_names_who_did_it",
        on: "cgroup v1",
        why: "cgroup.kill is of cgroup v2",
    },
    Entry {
        tests: "signal::a_cgroup_that_is_killed_whole_names_who_did_it",
        on: "5.10",
        why: "cgroup.kill is of 5.14",
    },
    Entry {
        tests: "signal::a_cgroup_that_is_killed_whole_names_who_did_it",
        on: "5.10.218",
        why: "cgroup.kill is of 5.14",
    },
    Entry { tests: "kernel_side::stacks*", on: "5.10", why: "bpf_loop came with 5.17" },
    Entry { tests: "kernel_side::stacks*", on: "5.10.218", why: "bpf_loop came with 5.17" },
    Entry { tests: "kernel_side::the_kernel*", on: "5.10", why: "bpf_snprintf came with 5.13" },
    Entry { tests: "kernel_side::the_kernel*", on: "5.10.218", why: "bpf_snprintf came with 5.13" },
    Entry { tests: "signal::a_container_that*", on: "5.10.218", why: NO_CONTAINERS },
    Entry { tests: "signal::a_sender_in_a_pod*", on: "5.10.218", why: NO_CONTAINERS },
    Entry { tests: "signal::a_stop_after*", on: "5.10.218", why: NO_CONTAINERS },
    Entry { tests: "signal::someones_kill*", on: "5.10.218", why: NO_CONTAINERS },
    Entry {
        tests: "dns_nat::*",
        on: "emulated",
        why: "a machine of the lab loads no module that rewrites addresses",
    },
    Entry {
        tests: "harness::*",
        on: "emulated",
        why: "it tests the harness, which is the same on every kernel",
    },
    Entry {
        tests: "metrics::*",
        on: "emulated",
        why: "what it says is the same on every kernel, and Prometheus takes an emulated machine long",
    },
    Entry {
        tests: "kubernetes_events::*",
        on: "emulated",
        why: "what the API server gets is the same on every kernel",
    },
    Entry {
        tests: "alerts::*",
        on: "emulated",
        why: "rules and Alertmanager are the same on every kernel, and take an emulated machine long",
    },
    Entry {
        tests: "budget::*",
        on: "emulated",
        why: "what is left out, and when, is the same on every kernel, and an emulated machine's agent is over budget by itself",
    },
    Entry { tests: "exports::*", on: "emulated", why: "what destinations get is the same on every kernel" },
    Entry {
        tests: "history::*",
        on: "emulated",
        why: "what is kept is the same on every kernel, and naming a node's stacks takes an emulated machine long",
    },
    Entry { tests: "oncpu::*", on: "emulated", why: COMPILERS },
    Entry {
        tests: "python::a_python_*",
        on: "emulated",
        why: "shares of time within four points are not what an emulated machine's clock keeps; that frames are read there, \
              the other test shows",
    },
    Entry { tests: "node_oom::*", on: "running", why: "it would take all of this machine's memory" },
    Entry { tests: "daemonset::*", on: "5.10.218", why: NO_CONTAINERS },
    Entry {
        tests: "dns_socket::an_ephemeral_container*",
        on: "emulated",
        why: "five observers share an emulated machine with a client whose sockets are closed before any has found whose \
              they were; what the packet socket sees is tested there without containers",
    },
    Entry {
        tests: "profile::known_functions*",
        on: "emulated",
        why: "shares of time are not what an emulated machine's clock keeps; that stacks are read there, the other tests show",
    },
    Entry { tests: "profile::a_container_s_file*", on: "5.10.218", why: NO_CONTAINERS },
    Entry { tests: "suspects::the_app_that_leaks*", on: "emulated", why: COMPILERS },
    Entry { tests: "suspects::*", on: "5.10.218", why: NO_CONTAINERS },
    Entry { tests: "pods::*", on: "5.10.218", why: NO_CONTAINERS },
    Entry { tests: "storm::*", on: "5.10.218", why: NO_CONTAINERS },
];

impl Entry {
    /// It need not be run.
    pub fn is_left_out(&self) -> bool {
        self.tests.ends_with('*')
    }
}

/// What the list has for this test on a machine with these traits.
pub fn find(test: &str, traits: &[String]) -> Option<&'static Entry> {
    LIST.iter().find(|entry| {
        let named = match entry.tests.strip_suffix('*') {
            Some(start) => test.starts_with(start),
            None => test == entry.tests,
        };
        named && traits.iter().any(|on| on == entry.on)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_left_out_on_its_kernel_alone() {
        let on = |name: &str| vec![name.to_owned(), "cgroup v2".to_owned()];
        assert!(find("pods::a", &on("5.10.218")).is_some_and(Entry::is_left_out));
        assert_eq!((find("pods::a", &on("5.10")), find("oom::a", &on("5.10.218"))), (None, None));
    }
}
