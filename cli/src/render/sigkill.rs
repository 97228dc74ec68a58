//! SIGKILLs that no OOM killer sent: the live line, the rows of the list, and the sheet of one SIGKILL.

use std::collections::HashMap;
use std::io::{self, Write};

use jiff::SignedDuration;
use podopsy_model::sigkill::{Sender, Sigkill, SigkillVerdict};
use podopsy_model::sigkill_verdict;
use podopsy_model::verdict::container_state;
use podopsy_model::{Event, KnownBy};

use super::oom::pod;
use super::table::{field, heading};
use super::{losses, units};
use crate::terminal::Terminal;

/// SIGKILLs from one sender to one container within this time are one row: stopping a container kills all its processes.
const TOGETHER: SignedDuration = SignedDuration::from_secs(10);

/// One line of a live table.
pub fn line(sigkill: &Sigkill) -> String {
    let first = if sigkill.first_process == Some(true) { "PID 1 of its container: " } else { "" };
    format!("{first}{}", sigkill_verdict::explain(sigkill))
}

/// The rows of the list, each with the number of further kills that it stands for. OOM incidents are not grouped here. Of a
/// container's processes that were killed together, the row shows PID 1, or else the first.
pub fn grouped(events: &[Event]) -> Vec<(&Event, u64)> {
    let mut rows: Vec<(&Event, u64)> = Vec::new();
    let mut groups: HashMap<(&str, Sender), usize> = HashMap::new();
    for event in events {
        let (Some(sigkill), Some(container)) = (event.sigkill(), &event.container) else {
            rows.push((event, 0));
            continue;
        };
        let key = (container.id.as_str(), sigkill.by);
        match groups.get(&key).map(|&at| &mut rows[at]) {
            Some((shown, more)) if event.time.duration_since(shown.time) < TOGETHER => {
                *more += 1;
                if sigkill.first_process == Some(true) {
                    *shown = event;
                }
            }
            _ => {
                groups.insert(key, rows.len());
                rows.push((event, 0));
            }
        }
    }
    rows
}

/// The cells from the column RESTARTS on.
pub fn cells(event: &Event, sigkill: &Sigkill, more: u64) -> Vec<String> {
    let restarts = sigkill.runtime.as_ref().map(|view| view.restarts);
    let restarts = restarts.or(event.container.as_ref().map(|container| container.attempt));
    let victim = format!("{}[{}]", event.process.comm, event.process.pid);
    vec![
        restarts.map(|n| n.to_string()).unwrap_or_default(),
        "none".to_owned(),
        if more > 0 { format!("{victim} and {more} more") } else { victim },
        String::new(),
        short(sigkill),
    ]
}

/// `Error (137): SIGKILL, no OOM: kubelet[812]`.
fn short(sigkill: &Sigkill) -> String {
    let state =
        sigkill.runtime.as_ref().map(|view| format!("{}: ", container_state(view))).unwrap_or_default();
    let kind = match sigkill.verdict {
        Some(SigkillVerdict::ContainerRunsOn) => "silent SIGKILL, no OOM",
        _ => "SIGKILL, no OOM",
    };
    format!("{state}{kind}: {}", sigkill_verdict::from(sigkill))
}

/// Prints all facts of one SIGKILL.
pub fn print(out: &mut impl Write, terminal: Terminal, event: &Event, sigkill: &Sigkill) -> io::Result<()> {
    heading(out, terminal, &title(event, sigkill))?;
    for (key, value) in fields(event, sigkill) {
        field(out, terminal, key, &value)?;
    }
    Ok(())
}

pub fn title(event: &Event, sigkill: &Sigkill) -> String {
    let name = event.container.as_ref().map(|container| format!("/{}", container.name)).unwrap_or_default();
    format!("SIGKILL {} of {}{name} at {}", sigkill.id, pod(event), units::date(event.time))
}

/// The known facts, each with its name.
pub fn fields(event: &Event, sigkill: &Sigkill) -> Vec<(&'static str, String)> {
    let first = match sigkill.first_process {
        Some(true) => ", PID 1 of its container",
        Some(false) => ", not PID 1 of its container",
        None => "",
    };
    let whole = if sigkill.to_process { "" } else { ", by one of its threads" };
    let runtime = sigkill
        .runtime
        .as_ref()
        .map(|view| format!("{}, {}", container_state(view), units::plural(view.restarts.into(), "restart")));
    let image = event.container.as_ref().filter(|_| event.known_by != KnownBy::Host);
    let mut fields = vec![
        ("verdict", sigkill_verdict::explain(sigkill)),
        ("target", format!("{}[{}]{first}{whole}", event.process.comm, event.process.pid)),
        ("cgroup", event.cgroup.path.clone().unwrap_or_default()),
        ("sender", sender(sigkill)),
        ("signal", code(sigkill.si_code)),
        ("runtime", runtime.unwrap_or_default()),
        ("image", image.map(|one| one.image.clone()).unwrap_or_default()),
        ("losses", losses(&event.losses)),
    ];
    fields.retain(|(_, value)| !value.is_empty());
    fields
}

/// The sender, its cgroup and when it was started.
fn sender(sigkill: &Sigkill) -> String {
    let party = sigkill.sender.as_ref();
    let path = party.and_then(|party| party.cgroup.path.clone());
    let started = party.and_then(|party| party.process.start_time);
    let started = started.map(|time| format!("started {}", units::date(time)));
    let lines = [Some(sigkill_verdict::from(sigkill)), path, started];
    lines.into_iter().flatten().collect::<Vec<_>>().join("\n")
}

fn code(si_code: Option<i32>) -> String {
    match si_code {
        Some(0) => "kill (si_code 0)".to_owned(),
        Some(-6) => "tgkill (si_code -6)".to_owned(),
        Some(-1) => "sigqueue (si_code -1)".to_owned(),
        Some(0x80) => "sent by the kernel (si_code 128)".to_owned(),
        Some(code) => format!("si_code {code}"),
        None => String::new(),
    }
}

#[cfg(test)]
pub mod tests {
    use podopsy_model::incident::RuntimeView;
    use podopsy_model::sigkill::Party;
    use podopsy_model::{Detail, EventKind, ProcessRef};

    use super::*;

    /// PID 1 of shop/orders/api, killed by the kubelet `seconds_ago`.
    pub fn event(id: &str, seconds_ago: i64) -> Event {
        let oom = crate::render::oom::tests::event(id, seconds_ago);
        let runtime = oom.incident.as_ref().and_then(|incident| incident.runtime.clone()).unwrap();
        let sigkill = Sigkill {
            id: id.into(),
            by: Sender::Kubelet,
            sender: Some(Party {
                process: ProcessRef { pid: 812, comm: "kubelet".into(), start_time: None },
                pod: None,
                container: None,
                cgroup: Default::default(),
                known_by: KnownBy::Host,
            }),
            first_process: Some(true),
            si_code: Some(0),
            to_process: true,
            runtime: Some(RuntimeView {
                state: "exited".into(),
                reason: "Error".into(),
                exit_code: Some(137),
                pid: None,
                ..runtime
            }),
            verdict: Some(SigkillVerdict::SigkillNoOom),
        };
        Event { kind: EventKind::Sigkill, detail: Detail::Sigkill(sigkill), incident: None, ..oom }
    }

    #[test]
    fn the_kills_of_a_stopped_container_are_one_row_that_shows_pid_1() {
        let mut events: Vec<Event> = (0..4).map(|n| event(&format!("3f2a-k{n}-1"), 20)).collect();
        for (n, one) in events.iter_mut().enumerate() {
            let Detail::Sigkill(sigkill) = &mut one.detail else { unreachable!() };
            sigkill.first_process = Some(n == 2);
        }
        events.push(crate::render::oom::tests::event("3f2a-7", 19));
        events.push(event("3f2a-k9-1", 1));
        let rows: Vec<_> =
            grouped(&events).iter().map(|(one, more)| (one.kept_id().unwrap(), *more)).collect();
        assert_eq!(rows, [("3f2a-k2-1", 3), ("3f2a-7", 0), ("3f2a-k9-1", 0)]);
    }

    #[test]
    fn the_list_and_the_live_line_name_the_sender() {
        let mut one = event("3f2a-k1202-9", 0);
        one.time = "2026-03-01T03:04:05.678Z".parse().unwrap();
        let mut out = Vec::new();
        crate::render::oom::print(&mut out, Terminal::PLAIN.into(), &[(&one, 0)], false).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "\
WHEN                  ID            POD          CONTAINER  RESTARTS  LIMIT  VICTIM      RSS / LIMIT  KUBERNETES SAYS
2026-03-01 03:04:05Z  3f2a-k1202-9  shop/orders  api        1         none   leak[1202]  -            Error (137): SIGKILL, no OOM: kubelet[812]
"
        );
        assert_eq!(
            line(one.sigkill().unwrap()),
            "PID 1 of its container: Error (137) in Kubernetes, but no OOM: SIGKILL from kubelet[812]"
        );
    }

    #[test]
    fn the_sheet_has_every_fact() {
        let one = event("3f2a-k1202-9", 0);
        let mut out = Vec::new();
        print(&mut out, Terminal::PLAIN, &one, one.sigkill().unwrap()).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in [
            "SIGKILL 3f2a-k1202-9 of shop/orders/api",
            "leak[1202], PID 1 of its container",
            "kubelet[812]",
            "kill (si_code 0)",
            "Error (137), 1 restart",
            "registry.local/orders:2.0",
            "nothing lost",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
