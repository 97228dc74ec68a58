//! Tests that a kernel cannot pass, and why: only a test that is listed here may fail without failing the run.
//!
//! A test that is listed by its full name is run all the same. If it passes, the entry is wrong, and the table reports it.
//! Tests that are listed with a `*` (`pods::*`) are not run, to save their time.

/// A test, or several, that cannot pass on some machine.
#[derive(Debug, PartialEq, Eq)]
pub struct UnsupportedTest {
    /// A test's full name, or the beginning of names and a `*`.
    pub tests: &'static str,
    /// A kernel's name, or a trait of the machine: `cgroup v1`, `emulated`.
    on: &'static str,
    pub why: &'static str,
}

const NO_CONTAINERS: &str = "Debian 12's runc 1.1.5 starts no container on this kernel \
                             (\"waiting for init preliminary setup: read init-p: connection reset by peer\")";

const COMPILERS: &str = "its programs are compiled by Go, rustc and g++ as it runs, which takes an emulated machine longer \
                         than a test may";

const UNSUPPORTED: &[UnsupportedTest] = &[
    UnsupportedTest {
        tests: "autopsy::a_group_kill_is_one_incident_with_five_victims",
        on: "cgroup v1",
        why: "memory.oom.group is of cgroup v2",
    },
    UnsupportedTest { tests: "autopsy::a_silent_child*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest { tests: "autopsy::the_pods_limit*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest { tests: "autopsy::without_any_recorder*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest { tests: "clients::*", on: "emulated", why: COMPILERS },
    UnsupportedTest {
        tests: "heaps::*",
        on: "emulated",
        why: "its programs fill their limits within seconds of a real machine",
    },
    UnsupportedTest { tests: "lookups::a_pods_lookup*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest {
        tests: "sigkill::a_cgroup_that_is_killed_whole_names_the_sender",
        on: "cgroup v1",
        why: "cgroup.kill is of cgroup v2",
    },
    UnsupportedTest {
        tests: "sigkill::a_cgroup_that_is_killed_whole_names_the_sender",
        on: "5.10",
        why: "cgroup.kill is of 5.14",
    },
    UnsupportedTest {
        tests: "sigkill::a_cgroup_that_is_killed_whole_names_the_sender",
        on: "5.10.218",
        why: "cgroup.kill is of 5.14",
    },
    UnsupportedTest { tests: "kernel_side::stacks*", on: "5.10", why: "bpf_loop came with 5.17" },
    UnsupportedTest { tests: "kernel_side::stacks*", on: "5.10.218", why: "bpf_loop came with 5.17" },
    UnsupportedTest { tests: "kernel_side::the_kernel*", on: "5.10", why: "bpf_snprintf came with 5.13" },
    UnsupportedTest { tests: "kernel_side::the_kernel*", on: "5.10.218", why: "bpf_snprintf came with 5.13" },
    UnsupportedTest { tests: "oom_kinds::a_container_that*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest { tests: "oom_kinds::a_limit_inside*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest { tests: "sandboxes::*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest { tests: "sigkill::a_container_that*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest { tests: "sigkill::a_sender_in_a_pod*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest { tests: "sigkill::a_stop_after*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest { tests: "sigkill::someones_kill*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest {
        tests: "hostile_dns::*",
        on: "emulated",
        why: "an emulated machine does not send 8,000 queries a second",
    },
    UnsupportedTest {
        tests: "hostile_dns_tables::thousands*",
        on: "emulated",
        why: "an emulated machine does not open thousands of connections and sockets in time",
    },
    UnsupportedTest {
        tests: "hostile_dns_tables::many*",
        on: "emulated",
        why: "an emulated machine does not open thousands of connections in time",
    },
    UnsupportedTest {
        tests: "situations::*",
        on: "emulated",
        why: "it is about podopsy's own answers, which it expects in the time of a machine that is not emulated",
    },
    UnsupportedTest {
        tests: "dns_nat::*",
        on: "emulated",
        why: "a lab machine loads no module that rewrites addresses",
    },
    UnsupportedTest {
        tests: "harness::*",
        on: "emulated",
        why: "it tests the harness, which is the same on every kernel",
    },
    UnsupportedTest {
        tests: "metrics::*",
        on: "emulated",
        why: "the metrics are the same on every kernel, and Prometheus is slow on an emulated machine",
    },
    UnsupportedTest {
        tests: "kubernetes_events::*",
        on: "emulated",
        why: "the requests to the API server are the same on every kernel",
    },
    UnsupportedTest {
        tests: "alerts::*",
        on: "emulated",
        why: "rules and Alertmanager are the same on every kernel, and slow on an emulated machine",
    },
    UnsupportedTest {
        tests: "budget::*",
        on: "emulated",
        why: "the events that are left out are the same on every kernel, and on an emulated machine the agent is always over budget",
    },
    UnsupportedTest { tests: "exports::*", on: "emulated", why: "the exports are the same on every kernel" },
    UnsupportedTest {
        tests: "history::*",
        on: "emulated",
        why: "the store is the same on every kernel, and symbolizing a node's stacks is slow on an emulated machine",
    },
    UnsupportedTest { tests: "oncpu::*", on: "emulated", why: COMPILERS },
    UnsupportedTest { tests: "frames::*", on: "emulated", why: COMPILERS },
    UnsupportedTest {
        tests: "python::a_python_*",
        on: "emulated",
        why: "shares of time within four points are not what an emulated machine's clock keeps; that frames are read there, \
              the other test shows",
    },
    UnsupportedTest { tests: "node_oom::*", on: "running", why: "it would use all of this machine's memory" },
    UnsupportedTest { tests: "daemonset::*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest {
        tests: "dns_socket::an_ephemeral_container*",
        on: "emulated",
        why: "five observers share an emulated machine with a client whose sockets are closed before any has found whose \
              they were; what the packet socket sees is tested there without containers",
    },
    UnsupportedTest {
        tests: "profile::known_functions*",
        on: "emulated",
        why: "shares of time are not what an emulated machine's clock keeps; that stacks are read there, the other tests show",
    },
    UnsupportedTest { tests: "profile::a_container_s_file*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest { tests: "growth_candidates::the_app_that_leaks*", on: "emulated", why: COMPILERS },
    UnsupportedTest { tests: "growth_candidates::*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest { tests: "pods::*", on: "5.10.218", why: NO_CONTAINERS },
    UnsupportedTest { tests: "storm::*", on: "5.10.218", why: NO_CONTAINERS },
];

impl UnsupportedTest {
    /// Whether the tests are not run at all.
    pub fn is_left_out(&self) -> bool {
        self.tests.ends_with('*')
    }
}

/// The list's entry for this test on a machine with these traits.
pub fn find(test: &str, traits: &[String]) -> Option<&'static UnsupportedTest> {
    UNSUPPORTED.iter().find(|entry| {
        let is_listed = match entry.tests.strip_suffix('*') {
            Some(start) => test.starts_with(start),
            None => test == entry.tests,
        };
        is_listed && traits.iter().any(|on| on == entry.on)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_left_out_only_on_the_listed_kernel() {
        let on = |name: &str| vec![name.to_owned(), "cgroup v2".to_owned()];
        assert!(find("pods::a", &on("5.10.218")).is_some_and(UnsupportedTest::is_left_out));
        assert_eq!((find("pods::a", &on("5.10")), find("oom::a", &on("5.10.218"))), (None, None));
    }
}
