//! Checks the kernel's build options and settings.

use super::capability::{Capabilities, Capability};
use super::machine::Machine;
use super::{Check, CheckGroup};

pub(super) fn checks(machine: &Machine, held: Capabilities) -> Vec<Check> {
    vec![
        release(machine),
        btf(machine),
        kernel_symbols(machine),
        perf_event_paranoid(machine, held),
        unprivileged_bpf(machine),
        lockdown(machine),
        bpf_lsm(machine),
        landlock(podopsy_system::landlock_version()),
        seccomp(machine),
    ]
}

fn release(machine: &Machine) -> Check {
    let remedy = "mount -t proc proc /proc";
    match machine.read("/proc/sys/kernel/osrelease") {
        Ok(release) => {
            Check::ok(CheckGroup::Kernel, "release", format!("{release} {}", std::env::consts::ARCH))
        }
        Err(error) => {
            Check::missing(CheckGroup::Kernel, "release", format!("cannot read /proc: {error}"), remedy)
        }
    }
}

fn btf(machine: &Machine) -> Check {
    let path = "/sys/kernel/btf/vmlinux";
    match machine.file_len(path) {
        Ok(bytes) => Check::ok(CheckGroup::Kernel, "btf", format!("{path}, {} KiB", bytes / 1024)),
        Err(error) => Check::missing(
            CheckGroup::Kernel,
            "btf",
            format!("{path}: {error}; the probes cannot be adapted to this kernel's structures"),
            "boot a kernel with CONFIG_DEBUG_INFO_BTF=y (every current distribution has one); in a pod: mount hostPath: /sys",
        ),
    }
}

/// Checks /proc/kallsyms itself: it shows zeros to a process that may not see addresses.
fn kernel_symbols(machine: &Machine) -> Check {
    let restrict = machine.read("/proc/sys/kernel/kptr_restrict").unwrap_or_else(|_| "?".to_owned());
    let head = machine.read_up_to("/proc/kallsyms", 64 << 10).unwrap_or_default();
    // The first symbols of a kernel can really be at 0 (per-CPU ones), so a single other address is enough.
    let visible = head
        .lines()
        .filter_map(|line| line.split(' ').next())
        .any(|address| u64::from_str_radix(address, 16).is_ok_and(|address| address != 0));
    // At 2 addresses are hidden from every process; below, from processes without CAP_SYSLOG.
    let remedy = if restrict == "2" {
        "sysctl kernel.kptr_restrict=1, and run as root (CAP_SYSLOG)"
    } else {
        "run as root; in a pod: securityContext.capabilities.add: [\"SYSLOG\"]"
    };
    if visible {
        Check::ok(CheckGroup::Kernel, "kernel-symbols", format!("readable (kptr_restrict = {restrict})"))
    } else {
        Check::degraded(
            CheckGroup::Kernel,
            "kernel-symbols",
            format!("hidden (kptr_restrict = {restrict}): kernel frames stay without names"),
            remedy,
        )
    }
}

fn perf_event_paranoid(machine: &Machine, held: Capabilities) -> Check {
    let name = "perf_event_paranoid";
    let Ok(text) = machine.read("/proc/sys/kernel/perf_event_paranoid") else {
        return Check::missing(
            CheckGroup::Kernel,
            name,
            "does not exist: the kernel has no perf events, so no CPU profile",
            "boot a kernel with CONFIG_PERF_EVENTS=y",
        );
    };
    let level: i32 = text.parse().unwrap_or(i32::MAX);
    if held.has(Capability::SysAdmin) || (level <= 2 && held.allows(Capability::Perfmon)) {
        let by = if held.has(Capability::Perfmon) && level <= 2 { "PERFMON" } else { "SYS_ADMIN" };
        Check::ok(CheckGroup::Kernel, name, format!("{text}, which CAP_{by} overrides"))
    } else if held.allows(Capability::Perfmon) {
        Check::degraded(
            CheckGroup::Kernel,
            name,
            format!(
                "{text}: above 2, Debian's and Ubuntu's kernels require CAP_SYS_ADMIN instead of CAP_PERFMON"
            ),
            "sysctl kernel.perf_event_paranoid=2 on the node; or also add the capability SYS_ADMIN",
        )
    } else if level < 0 {
        Check::ok(CheckGroup::Kernel, name, text)
    } else {
        Check::degraded(
            CheckGroup::Kernel,
            name,
            format!("{text}: CPUs cannot be sampled without CAP_PERFMON"),
            "run as root; in a pod: securityContext.capabilities.add: [\"PERFMON\"]",
        )
    }
}

fn unprivileged_bpf(machine: &Machine) -> Check {
    let found = match machine.read("/proc/sys/kernel/unprivileged_bpf_disabled").as_deref() {
        Ok("0") => "0: anyone may use bpf(2); podopsy does not need that".to_owned(),
        Ok(value) => format!("{value}: only with CAP_BPF, as podopsy expects"),
        Err(_) => "no such setting".to_owned(),
    };
    Check::ok(CheckGroup::Kernel, "unprivileged_bpf_disabled", found)
}

fn lockdown(machine: &Machine) -> Check {
    let name = "lockdown";
    // The active mode is in brackets: "none [integrity] confidentiality".
    let modes = machine.read("/sys/kernel/security/lockdown").unwrap_or_default();
    let active = modes.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|(mode, _)| mode);
    match active {
        Some("confidentiality") => Check::missing(
            CheckGroup::Kernel,
            name,
            "confidentiality: BPF programs may not read kernel memory",
            "boot with lockdown=integrity (or without lockdown= on the kernel's command line)",
        ),
        Some(mode) => Check::ok(CheckGroup::Kernel, name, mode),
        None => Check::ok(CheckGroup::Kernel, name, "not in this kernel, or securityfs is not mounted"),
    }
}

fn bpf_lsm(machine: &Machine) -> Check {
    let found = match machine.read("/sys/kernel/security/lsm") {
        Ok(list) if list.split(',').any(|lsm| lsm == "bpf") => format!("active ({list})"),
        Ok(list) => format!("not active ({list}); no probe needs it"),
        Err(_) => "not known (securityfs is not mounted); no probe needs it".to_owned(),
    };
    Check::ok(CheckGroup::Kernel, "bpf-lsm", found)
}

fn landlock(version: Option<u32>) -> Check {
    let found = match version {
        Some(version) => format!("version {version}: keeps the agent's threads that write inside of its state folder"),
        None => "not in this kernel (Linux 5.13), or not in lsm=: nothing keeps the agent's threads that write inside of \
                 its state folder"
            .to_owned(),
    };
    Check::ok(CheckGroup::Kernel, "landlock", found)
}

fn seccomp(machine: &Machine) -> Check {
    match machine.status_field("Seccomp").as_deref() {
        Some("2") => Check::degraded(
            CheckGroup::Kernel,
            "seccomp",
            "a filter is active: it may refuse bpf(2) and perf_event_open(2) despite the capabilities",
            "securityContext.seccompProfile: {type: Unconfined}",
        ),
        Some("1") => Check::missing(
            CheckGroup::Kernel,
            "seccomp",
            "strict mode",
            "securityContext.seccompProfile: {type: Unconfined}",
        ),
        _ => Check::ok(CheckGroup::Kernel, "seccomp", "no filter"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::CheckStatus;
    use super::super::machine::tests::with;
    use super::*;

    #[test]
    fn kallsyms_are_hidden_only_if_all_addresses_are_zero() {
        let zeros = "0000000000000000 A fixed_percpu_data\n0000000000000000 T _stext\n";
        let (_dir, machine) = with(&[("/proc/kallsyms", zeros)]);
        assert_eq!(kernel_symbols(&machine).status, CheckStatus::Degraded);
        let real = "0000000000000000 A fixed_percpu_data\nffffffff81000000 T _stext\n";
        let (_dir, machine) = with(&[("/proc/kallsyms", real)]);
        assert_eq!(kernel_symbols(&machine).status, CheckStatus::Ok);
    }

    #[test]
    fn only_confidentiality_prevents_the_probes() {
        for (modes, status) in [
            ("none integrity [confidentiality]", CheckStatus::Missing),
            ("none [integrity] confidentiality", CheckStatus::Ok),
            ("[none] integrity confidentiality", CheckStatus::Ok),
        ] {
            let (_dir, machine) = with(&[("/sys/kernel/security/lockdown", modes)]);
            assert_eq!(lockdown(&machine).status, status, "{modes}");
        }
    }

    #[test]
    fn perfmon_overrides_perf_event_paranoid_up_to_2() {
        let (_dir, machine) = with(&[("/proc/sys/kernel/perf_event_paranoid", "3\n")]);
        let perfmon = Capabilities::from_hex("4000000000").unwrap();
        // Debian's and Ubuntu's default.
        assert_eq!(perf_event_paranoid(&machine, perfmon).status, CheckStatus::Degraded);
        let all = Capabilities::from_hex("1ffffffffff").unwrap();
        assert_eq!(perf_event_paranoid(&machine, all).status, CheckStatus::Ok);
        let (_dir, upstream) = with(&[("/proc/sys/kernel/perf_event_paranoid", "2\n")]);
        assert_eq!(perf_event_paranoid(&upstream, perfmon).status, CheckStatus::Ok);
        assert_eq!(perf_event_paranoid(&machine, Capabilities::default()).status, CheckStatus::Degraded);
    }

    #[test]
    fn a_kernel_without_landlock_is_named() {
        assert!(landlock(None).found.contains("not in this kernel"));
        assert!(landlock(Some(7)).found.contains("version 7"));
    }

    #[test]
    fn a_seccomp_filter_is_degraded() {
        let (_dir, machine) = with(&[("/proc/self/status", "Seccomp:\t2\nSeccomp_filters:\t1\n")]);
        assert_eq!(seccomp(&machine).status, CheckStatus::Degraded);
    }
}
