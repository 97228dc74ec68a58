//! Which tests every run of `cargo xtask test` takes to the lab's kernels. All of them are `cargo xtask vm all`.
//!
//! An emulated machine is ten to twenty times slower than this one, and most of what tests ask is the same on every
//! kernel. Here is what is not, each for at least one reason: a probe that the verifier has to accept and the kernel's own
//! way has to feed, cgroup v2 (this machine may have v1), or what Debian's patches refuse. A new probe, or a new way of a
//! probe that depends on the kernel, brings a line.

/// Parts of names; each is some test's.
pub const TESTS: [&str; 29] = [
    // OOM kills: victim and trigger, threads, groups (v2), limits of every level (v2), the kernel's log.
    "oom::a_killed_host_process",
    "oom::a_storm_of_kills",
    "oom::the_trigger",
    "autopsy::a_group_kill",
    "autopsy::a_leaf_limit",
    "autopsy::a_victim_of_many_threads",
    "autopsy::kills_while_nobody_watched",
    "dying::",
    // Losses are counted in the kernel; its other tests take a minute each there.
    "losses::failed_lookups",
    // SIGKILL.
    "signal::someones_kill",
    "signal::an_oom_kill",
    "signal::many_threads",
    "signal::a_cgroup_that_is_killed_whole",
    // DNS: cgroup hooks, TCP, receive buffers, and the packet socket.
    "dns::every_rcode",
    "dns::silence",
    "dns::ipv6",
    "dns::malformed",
    "dns_counts::successes",
    "dns_diagnosis::an_answer",
    "dns_socket::every_outcome",
    "dns_tcp::messages",
    // Stacks: on CPU, of page faults, Python's, by bpf_loop.
    "profile::work_in_the_kernel",
    "growth::",
    "python::what_only_says",
    "kernel_side::",
    // Pods on cgroup v2, and what an agent may do with what it is given, and with what it keeps.
    "daemonset::",
    "pods::a_kill_names",
    "pods::a_failed_lookup",
    "restraint::the_agent_names",
];
