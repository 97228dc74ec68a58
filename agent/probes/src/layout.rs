//! The offsets that every probe reads ([`podopsy_wire::Layout`]): from the kernel's BTF, never from a version number.

use anyhow::bail;
use podopsy_wire::{ABSENT, Layout};

use crate::btf::Btf;

/// What the running kernel's BTF says.
pub struct KernelShape {
    pub layout: Layout,
    /// `mark_victim` passes the victim's task; false: only its thread id.
    pub victim_is_task: bool,
}

/// Reads every offset; an error names the members without which no task can be identified.
pub fn read(btf: &Btf) -> anyhow::Result<KernelShape> {
    let mut missing = Vec::new();
    let mut required = |structure: &str, path: &str| {
        btf.offset(structure, path).unwrap_or_else(|| {
            missing.push(format!("{structure}.{path}"));
            ABSENT
        })
    };
    let memory = match btf.enumerator("cgroup_subsys_id", "memory_cgrp_id") {
        Some(index) => index,
        None => {
            bail!("this kernel has no memory controller (CONFIG_MEMCG): podopsy cannot attribute anything")
        }
    };
    let mut layout = Layout {
        task_pid: required("task_struct", "pid"),
        task_tgid: required("task_struct", "tgid"),
        task_comm: required("task_struct", "comm"),
        task_group_leader: required("task_struct", "group_leader"),
        task_start_boottime: required("task_struct", "start_boottime"),
        task_cgroups: required("task_struct", "cgroups"),
        task_mm: required("task_struct", "mm"),
        task_signal: required("task_struct", "signal"),
        css_set_memory: required("css_set", &format!("subsys[{memory}]")),
        css_cgroup: required("cgroup_subsys_state", "cgroup"),
        cgroup_kn: required("cgroup", "kn"),
        kernfs_node_id: required("kernfs_node", "id"),
        ..Layout::EMPTY
    };
    if !missing.is_empty() {
        bail!("this kernel's BTF lacks {}: this kernel is not supported", missing.join(", "));
    }
    let optional = |structure: &str, path: &str| btf.offset(structure, path).unwrap_or(ABSENT);
    layout.signal_oom_score_adj = optional("signal_struct", "oom_score_adj");
    layout.sock_err = optional("sock", "sk_err");
    layout.sock_cookie = optional("sock", "__sk_common.skc_cookie");
    layout.sock_dport = optional("sock", "__sk_common.skc_dport");
    layout.sock_owned = optional("sock", "sk_lock.owned");
    layout.kernfs_node_name = optional("kernfs_node", "name");
    // Renamed in 6.15.
    layout.kernfs_node_parent =
        btf.offset("kernfs_node", "__parent").unwrap_or_else(|| optional("kernfs_node", "parent"));
    layout.mm_start_stack = optional("mm_struct", "start_stack");
    layout.task_thread_pid = optional("task_struct", "thread_pid");
    layout.pid_level = optional("pid", "level");
    layout.pid_numbers = optional("pid", "numbers");
    layout.namespace_inum = optional("pid_namespace", "ns.inum");
    layout.binprm_file = optional("linux_binprm", "file");
    layout.file_inode = optional("file", "f_inode");
    layout.inode_ino = optional("inode", "i_ino");
    layout.inode_sb = optional("inode", "i_sb");
    layout.super_block_dev = optional("super_block", "s_dev");
    // mm_types_task.h: MM_FILEPAGES 0, MM_ANONPAGES 1, MM_SWAPENTS 2, MM_SHMEMPAGES 3.
    layout.mm_rss = [0, 1, 2, 3].map(|counter| rss_counter(btf, counter));
    Ok(KernelShape { layout, victim_is_task: btf.tracepoint_passes_pointer("mark_victim", 0) == Some(true) })
}

/// One counter of `mm_struct.rss_stat`: an array of per-CPU counters since 6.2, one structure before.
fn rss_counter(btf: &Btf, counter: u32) -> u32 {
    btf.offset("mm_struct", &format!("rss_stat[{counter}].count"))
        .or_else(|| btf.offset("mm_struct", &format!("rss_stat.count[{counter}]")))
        .unwrap_or(ABSENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_has_everything_that_identity_needs() {
        let shape = read(&Btf::from_kernel().unwrap()).unwrap();
        assert_ne!(shape.layout.task_pid, shape.layout.task_tgid);
        assert!(shape.layout.mm_rss.iter().all(|&offset| offset != ABSENT));
    }
}
