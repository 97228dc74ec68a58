//! Lines of real kernels (recorded on 6.18, the others as their sources print them), and hostile lines.

use super::*;

fn killed(text: &str) -> Killed {
    match parse(text.as_bytes(), None) {
        Some(OomLine::Killed(killed)) => killed,
        other => panic!("{text}: {other:?}"),
    }
}

fn chosen(text: &str) -> Chosen {
    match parse(text.as_bytes(), None) {
        Some(OomLine::Chosen(chosen)) => chosen,
        other => panic!("{text}: {other:?}"),
    }
}

fn columns(text: &str) -> TaskColumns {
    match parse(text.as_bytes(), None) {
        Some(OomLine::TableHeader(columns)) => columns,
        other => panic!("{text}: {other:?}"),
    }
}

fn row(header: &str, text: &str) -> TaskRow {
    match parse(text.as_bytes(), Some(&columns(header))) {
        Some(OomLine::TableRow(row)) => row,
        other => panic!("{text}: {other:?}"),
    }
}

#[test]
fn killed_lines_of_cgroups_and_of_the_machine_are_parsed() {
    let six = "Memory cgroup out of memory: Killed process 2739 (python3) total-vm:179864kB, anon-rss:49792kB, \
               file-rss:3132kB, shmem-rss:0kB, UID:0 pgtables:176kB oom_score_adj:-997";
    let found = killed(six);
    assert_eq!((found.in_cgroup, found.tid, found.comm.as_slice()), (true, 2739, &b"python3"[..]));
    assert_eq!((found.anon_bytes, found.file_bytes, found.shmem_bytes), (49_792 << 10, 3132 << 10, 0));
    assert_eq!(found.oom_score_adj, Some(-997));
    // 5.10 for the whole machine; with sysctl vm.oom_kill_allocating_task and fewer fields.
    let machine = "Out of memory: Killed process 348 (polkitd) total-vm:78084kB, anon-rss:2980kB, file-rss:8148kB, \
                   shmem-rss:0kB, UID:998 pgtables:64kB oom_score_adj:0";
    assert!(!killed(machine).in_cgroup);
    let allocating = "Out of memory (oom_kill_allocating_task): Killed process 5 (a b) total-vm:1kB, anon-rss:2kB, \
                      file-rss:3kB, shmem-rss:4kB";
    let found = killed(allocating);
    assert_eq!((found.tid, found.comm.as_slice(), found.oom_score_adj), (5, &b"a b"[..], None));
}

#[test]
fn a_comm_cannot_pose_as_the_numbers_behind_it() {
    let text = "Memory cgroup out of memory: Killed process 7 () total-vm:9kB,) total-vm:100kB, anon-rss:50kB, \
                file-rss:1kB, shmem-rss:0kB, UID:0 pgtables:4kB oom_score_adj:0";
    let found = killed(text);
    assert_eq!((found.comm.as_slice(), found.anon_bytes), (&b") total-vm:9kB,"[..], 50 << 10));
}

#[test]
fn a_victim_that_was_already_dying_is_no_kill() {
    let text = "Memory cgroup out of memory: OOM victim 77 (tail) is already exiting. Skip killing the task";
    assert_eq!(parse(text.as_bytes(), None), Some(OomLine::Exiting(77)));
}

#[test]
fn the_choice_names_the_cgroup_whose_limit_was_hit() {
    let found = chosen(
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/podopsy-fix-2674,\
         task_memcg=/podopsy-fix-2674/inner,task=python3,pid=2739,uid=0",
    );
    assert_eq!(found.oom_memcg.as_deref(), Some(&b"/podopsy-fix-2674"[..]));
    assert_eq!(found.task_memcg.as_deref(), Some(&b"/podopsy-fix-2674/inner"[..]));
    assert_eq!(
        (found.constraint.as_str(), found.global, found.tid, found.ambiguous),
        ("CONSTRAINT_MEMCG", false, 2739, false)
    );
    let node = chosen(
        "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=snapd.service,mems_allowed=0,global_oom,\
         task_memcg=/system.slice/cron.service,task=python,pid=44321,uid=1000",
    );
    assert!(node.global && node.oom_memcg.is_none());
    // Node lists contain commas.
    let cpuset = chosen(
        "oom-kill:constraint=CONSTRAINT_CPUSET,nodemask=0,2,cpuset=a,mems_allowed=0-1,3,global_oom,task_memcg=/,task=sh,pid=1,uid=0",
    );
    assert_eq!(
        (cpuset.constraint.as_str(), cpuset.task_memcg.as_deref()),
        ("CONSTRAINT_CPUSET", Some(&b"/"[..]))
    );
}

#[test]
fn names_that_look_like_fields_give_no_names() {
    for hostile in [
        "oom_memcg=/a,task_memcg=/a,task=x,task=,pid=1,uid=0,pid=7,uid=3",
        "oom_memcg=/a,oom_memcg=/victim,task_memcg=/a,task=x,pid=7,uid=3",
        "oom_memcg=/a,task_memcg=/a,task_memcg=/b,task=x,pid=7,uid=3",
        "oom_memcg=/a,global_oom,task_memcg=/a,task_memcg=/b,task=x,pid=7,uid=3",
    ] {
        let found = chosen(&format!(
            "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,{hostile}"
        ));
        assert!(found.ambiguous && found.oom_memcg.is_none() && found.task_memcg.is_none(), "{hostile}");
        assert_eq!((found.tid, found.uid), (7, 3), "{hostile}");
    }
    // A comm that looks like the end of the line: the kernel's own numbers come last.
    let posing = chosen(
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a,task=,pid=1,uid=0,pid=7,uid=3",
    );
    assert_eq!((posing.tid, posing.uid), (7, 3));
}

#[test]
fn task_tables_of_every_version_are_parsed() {
    let old = "[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name";
    let new = "[  pid  ]   uid  tgid total_vm      rss rss_anon rss_file rss_shmem pgtables_bytes swapents oom_score_adj name";
    let found = row(old, "[  69430]     0 69429      964      246    49152        5           -998 bash");
    assert_eq!((found.tid, found.pid, found.rss_pages, found.swap_pages), (69430, 69429, 246, 5));
    let found = row(
        new,
        "[   2739]     0  2739    44966    13231    12448      783         0   180224        0             0 python3",
    );
    assert_eq!((found.rss_pages, found.oom_score_adj, found.comm.as_slice()), (13231, 0, &b"python3"[..]));
    // A name with a newline, a bracket and a backslash, after the escapes were undone.
    let found = row(
        new,
        "[   2720]     0  2720     6607     4620     3808      812         0    86016        0             0 we\nird ]x\\y",
    );
    assert_eq!((found.rss_pages, found.comm.as_slice()), (4620, &b"we\nird ]x\\y"[..]));
}

#[test]
fn headers_give_the_trigger_and_the_usage() {
    let text = b"python3 invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0";
    assert_eq!(parse(text, None), Some(OomLine::Invoked(Invoked { comm: b"python3".to_vec(), order: 0 })));
    // Both forms of the "CPU:" line.
    for text in [
        "CPU: 0 UID: 0 PID: 2744 Comm: python3 Not tainted 6.18.44",
        "CPU: 1 PID: 2744 Comm: x PID: 9 Not tainted 5.10",
    ] {
        assert_eq!(parse(text.as_bytes(), None), Some(OomLine::Trigger(2744)), "{text}");
    }
    assert_eq!(
        parse(b"memory: usage 65536kB, limit 65536kB, failcnt 1391", None),
        Some(OomLine::Memory(Charged { usage_bytes: 64 << 20, limit_bytes: Some(64 << 20), hits: 1391 }))
    );
    let swap = parse(b"swap: usage 0kB, limit 9007199254740988kB, failcnt 0", None);
    assert_eq!(swap, Some(OomLine::Swap(Charged { usage_bytes: 0, limit_bytes: None, hits: 0 })));
    let kernel = parse(b"kmem: usage 348kB, limit 9007199254740988kB, failcnt 0", None);
    let usage_bytes = 348 << 10;
    assert_eq!(kernel, Some(OomLine::KernelMemory(Charged { usage_bytes, limit_bytes: None, hits: 0 })));
    let statistics = parse(b"Memory cgroup stats for /k/x: y:", None);
    assert_eq!(statistics, Some(OomLine::StatisticsHeader(b"/k/x: y".to_vec())));
    assert_eq!(parse(b"Memory cgroup stats for /k/x", None), None, "its path may go on in the next record");
    let group = parse(b"Tasks in /k/x are going to be killed due to memory.oom.group set", None);
    assert_eq!(group, Some(OomLine::Group(b"/k/x".to_vec())));
}

/// A small replacement for a fuzzer: each line, cut anywhere and with any byte replaced, must not panic.
#[test]
fn mangled_lines_never_panic() {
    let lines = [
        "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/a,task_memcg=/a,task=x,pid=1,uid=0",
        "Memory cgroup out of memory: Killed process 7 (x) total-vm:1kB, anon-rss:5kB, file-rss:1kB, shmem-rss:0kB, UID:0",
        "[   2720]     0  2720     6607     4620     3808      812         0    86016        0             0 name",
        "[  pid  ]   uid  tgid total_vm      rss pgtables_bytes swapents oom_score_adj name",
        "memory: usage 65536kB, limit 65536kB, failcnt 1391",
        "x invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0",
        "Tasks in /x are going to be killed due to memory.oom.group set",
    ];
    let columns = columns(lines[3]);
    for line in lines {
        for cut in 0..=line.len() {
            parse(&line.as_bytes()[..cut], Some(&columns));
            parse(&line.as_bytes()[cut..], Some(&columns));
        }
        for at in 0..line.len() {
            for byte in [0, b' ', b',', b'=', b'-', b'9', b']', 0xff] {
                let mut bytes = line.as_bytes().to_vec();
                bytes[at] = byte;
                parse(&bytes, Some(&columns));
            }
        }
    }
}
