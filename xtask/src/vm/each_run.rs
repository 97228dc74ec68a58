//! The tests that every run of `cargo xtask test` runs on the lab's kernels. `cargo xtask vm all` runs all tests there.
//!
//! An emulated machine is ten to twenty times slower than this one, and most of what tests check is the same on every kernel.
//! Each test here checks something that differs between kernels: a probe that the verifier has to accept and that the kernel
//! has to call, cgroup v2 (this machine may have v1), or a call that Debian's patches refuse. A new probe, or a new
//! kernel-dependent way of attaching one, needs a line here.

/// Parts of the tests' names; each part has to occur in at least one name.
pub const TESTS: [&str; 33] = [
    // OOM kills: victim and trigger, threads, groups (v2), limits of every level (v2), the kernel's log.
    "oom::a_killed_host_process",
    "oom::a_storm_of_kills",
    "oom::the_trigger",
    "autopsy::a_group_kill",
    "autopsy::a_leaf_limit",
    "autopsy::a_victim_of_many_threads",
    "autopsy::kills_without_a_running_recorder",
    "dying::",
    // The kernel's statistics of a kill, by kind of memory.
    "oom_kinds::shared_memory",
    // Losses are counted in the kernel. The suite's other tests take a minute each on an emulated machine.
    "losses::failed_lookups",
    // SIGKILL.
    "sigkill::someones_kill",
    "sigkill::an_oom_kill",
    "sigkill::many_threads",
    "sigkill::a_cgroup_that_is_killed_whole",
    // DNS: cgroup hooks, TCP, receive buffers, and the packet socket.
    "dns::every_rcode",
    "dns::silence",
    "dns::ipv6",
    "dns::malformed",
    "dns_counts::successes",
    "dns_diagnosis::an_answer",
    "dns_outcomes::",
    "dns_socket::every_outcome",
    "dns_tcp::messages",
    // Places in the kernel side's tables that are left: by tracepoints of sockets and tasks.
    "hostile_dns_tables::closed",
    "hostile_dns_tables::threads_that_end",
    // Stacks: on CPU, of page faults, Python's, by bpf_loop.
    "profile::work_in_the_kernel",
    "growth::",
    "python::an_impostor",
    "kernel_side::",
    // Pods on cgroup v2; the agent's capabilities, and those that it keeps.
    "daemonset::",
    "pods::a_kill_names",
    "pods::a_failed_lookup",
    "restraint::the_agent_names",
];
