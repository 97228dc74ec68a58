//! Folders that look like cgroup mounts.

use super::*;

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// `mounts`: (mount point below the folder, root, fs type, super options).
fn tree(mounts: &[(&str, &str, &str, &str)], own: &str) -> (tempfile::TempDir, Hierarchy) {
    let dir = tempfile::tempdir().unwrap();
    let info: String = mounts
        .iter()
        .enumerate()
        .map(|(n, (at, root, fs, options))| {
            let at = dir.path().join("cg").join(at);
            std::fs::create_dir_all(&at).unwrap();
            format!("{} 23 0:{} {root} {} rw - {fs} {fs} {options}\n", 30 + n, 40 + n, at.display())
        })
        .collect();
    write(&dir.path().join("proc/self/mountinfo"), &info);
    write(&dir.path().join("proc/self/cgroup"), own);
    let found = Hierarchy::find(&dir.path().join("proc"), &dir.path().join("cg")).unwrap();
    (dir, found)
}

#[test]
fn a_hybrid_node_uses_v1_for_memory() {
    let (_dir, h) = tree(
        &[
            ("cpu", "/", "cgroup", "rw,cpu"),
            ("memory", "/", "cgroup", "rw,memory"),
            ("unified", "/", "cgroup2", "rw"),
        ],
        "4:memory:/\n0::/\n",
    );
    assert_eq!((h.version, h.dir.ends_with("memory")), (CgroupVersion::V1, true));
    write(&h.join(Path::new("a/memory.limit_in_bytes")), "67108864\n");
    write(&h.join(Path::new("a/memory.usage_in_bytes")), "4096\n");
    write(&h.join(Path::new("b/memory.limit_in_bytes")), "9223372036854771712\n");
    write(&h.dir.join("../cpu/a/cpu.cfs_quota_us"), "25000\n");
    write(&h.dir.join("../cpu/a/cpu.cfs_period_us"), "100000\n");
    write(&h.dir.join("../cpu/b/cpu.cfs_quota_us"), "-1\n");
    write(&h.dir.join("../cpu/b/cpu.cfs_period_us"), "100000\n");
    let (a, b) = (Path::new("a"), Path::new("b"));
    assert_eq!((h.memory_limit(a), h.memory_usage(a)), (Some(67_108_864), Some(4096)));
    assert_eq!((h.memory_limit(b), h.memory_usage(b)), (None, None));
    assert_eq!((h.cpu_limit_millis(a), h.cpu_limit_millis(b)), (Some(250), None));
    let line = b"9:pids:/x\n4:hugetlb,memory:/kubepods/\xff (deleted)\n0::/y\n";
    assert_eq!(h.of_proc(line).unwrap().as_os_str().as_bytes(), b"kubepods/\xff");
    assert_eq!(h.shown(&h.of_proc(line).unwrap()), "/kubepods/\\xff");
}

#[test]
fn cpu_time_and_throttling_are_read_on_both_versions() {
    let usage = |us| CpuUsage { used: Duration::from_micros(us), periods: 40, throttled_periods: 10 };
    let mounts = [
        ("cpu", "/", "cgroup", "rw,cpu"),
        ("acct", "/", "cgroup", "rw,cpuacct"),
        ("memory", "/", "cgroup", "rw,memory"),
    ];
    let (_dir, v1) = tree(&mounts, "4:memory:/\n");
    let stat = "nr_periods 40\nnr_throttled 10\nthrottled_time 5000000\n";
    write(&v1.dir.join("../cpu/a/cpu.stat"), stat);
    write(&v1.dir.join("../acct/a/cpuacct.usage"), "7000000\n");
    assert_eq!(v1.cpu_usage(Path::new("a")), Some(usage(7000)));
    assert_eq!(v1.cpu_usage(Path::new("gone")), None);
    let (_dir, v2) = tree(&[("", "/", "cgroup2", "rw")], "0::/\n");
    let stat = "usage_usec 9000\nuser_usec 1\nnr_periods 40\nnr_throttled 10\nthrottled_usec 3\n";
    write(&v2.join(Path::new("a/cpu.stat")), stat);
    write(&v2.join(Path::new("b/cpu.stat")), "usage_usec 5\n");
    assert_eq!(v2.cpu_usage(Path::new("a")), Some(usage(9000)));
    let free = CpuUsage { used: Duration::from_micros(5), ..CpuUsage::default() };
    assert_eq!(v2.cpu_usage(Path::new("b")), Some(free));
}

#[test]
fn v2_limits_are_read() {
    let (_dir, h) = tree(&[("", "/", "cgroup2", "rw")], "0::/\n");
    write(&h.join(Path::new("a/memory.max")), "max\n");
    write(&h.join(Path::new("b/memory.max")), "1048576\n");
    write(&h.join(Path::new("b/memory.current")), "12\n");
    write(&h.join(Path::new("b/cpu.max")), "150000 100000\n");
    write(&h.join(Path::new("a/cpu.max")), "max 100000\n");
    write(&h.join(Path::new("b/cgroup.procs")), "0\n17\n4\n");
    let (a, b) = (Path::new("a"), Path::new("b"));
    assert_eq!((h.memory_limit(a), h.memory_limit(b), h.memory_usage(b)), (None, Some(1_048_576), Some(12)));
    assert_eq!((h.cpu_limit_millis(a), h.cpu_limit_millis(b)), (None, Some(1500)));
    assert_eq!(h.procs(b), [17, 4]);
    assert_eq!(h.of_proc(b"0::/kubepods.slice/x\n"), Some("kubepods.slice/x".into()));
    assert_eq!(h.of_proc(b"0::/../../../etc\n"), None);
    assert_eq!(h.of_proc(b"garbage"), None);
    assert_eq!(h.of_proc(b""), None);
}

#[test]
fn paths_in_a_cgroup_namespace_are_translated() {
    let dir = tempfile::tempdir().unwrap();
    let real = "cg/kubepods/pod1/agent";
    write(&dir.path().join("cg/cgroup.controllers"), "memory\n");
    write(&dir.path().join(real).join("cgroup.procs"), &format!("{}\n", std::process::id()));
    write(&dir.path().join("proc/self/mountinfo"), "");
    write(&dir.path().join("proc/self/cgroup"), "0::/\n");
    let h = Hierarchy::find(&dir.path().join("proc"), &dir.path().join("cg")).unwrap();
    assert_eq!(h.of_proc(b"0::/"), Some("kubepods/pod1/agent".into()));
    assert_eq!(h.of_proc(b"0::/../../pod2/app"), Some("kubepods/pod2/app".into()));
    assert_eq!(h.shown(Path::new("kubepods/pod2/app")), "/kubepods/pod2/app");
}

#[test]
fn a_mount_of_a_part_of_the_hierarchy_keeps_the_whole_path() {
    let (_dir, h) = tree(&[("memory", "/docker/abc", "cgroup", "rw,memory")], "4:memory:/docker/abc\n");
    assert_eq!(h.of_proc(b"4:memory:/docker/abc/x"), Some("x".into()));
    assert_eq!(h.shown(Path::new("x")), "/docker/abc/x");
    assert_eq!(h.shown(Path::new("")), "/docker/abc");
}

#[test]
fn without_a_hierarchy_the_error_names_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let error = Hierarchy::find(dir.path(), dir.path()).unwrap_err().to_string();
    assert!(error.contains(&dir.path().display().to_string()), "{error}");
}
