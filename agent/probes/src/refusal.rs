//! What a refusal of the kernel means for the user.

use anyhow::anyhow;
use podopsy_model::text;

/// How the lines after a verifier's verdict start.
const STATISTICS: [&str; 4] = ["verification time", "stack depth", "processed", ":"];

/// Says what was tried, and what to do where the kernel's error tells. A verifier's log can be megabytes: the debug log
/// has it whole, the error only its verdict.
pub(crate) fn explain(error: anyhow::Error, tried: &'static str) -> anyhow::Error {
    let chain = format!("{error:#}");
    if let Some((before, log)) = chain.split_once("Verifier output: ") {
        tracing::debug!("{chain}");
        return anyhow!(
            "{tried}: {}the kernel's verifier refused it: {} (its whole log: podopsy -vv, or RUST_LOG=debug for the agent)",
            text::escape(before),
            verdict(log)
        );
    }
    let error = error.context(tried);
    if chain.contains("Operation not permitted") || chain.contains("Permission denied") {
        return error.context(
            "not permitted: run as root, or give the container `privileged: true` \
             (capabilities BPF, PERFMON, NET_ADMIN, SYS_PTRACE, SYS_ADMIN)",
        );
    }
    error
}

/// The last line that is neither empty nor a statistic.
fn verdict(log: &str) -> &str {
    let is_statistic = |line: &str| STATISTICS.iter().any(|start| line.starts_with(start));
    log.lines().rev().find(|line| !is_statistic(line) && !line.trim().is_empty()).unwrap_or("no verdict")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_verifiers_log_the_verdict_is_shown() {
        let error =
            anyhow!("load x: Verifier output: 0: (b7) r0 = 1\nR1 invalid mem access\nprocessed 7 insns\n");
        let shown = explain(error, "load the probes").to_string();
        assert!(shown.contains("refused it: R1 invalid mem access"), "{shown}");
    }

    #[test]
    fn a_missing_permission_comes_with_what_grants_it() {
        let shown =
            format!("{:#}", explain(anyhow!("bpf: Operation not permitted (os error 1)"), "load the probes"));
        assert!(
            shown.starts_with("not permitted: run as root") && shown.contains("load the probes"),
            "{shown}"
        );
    }
}
