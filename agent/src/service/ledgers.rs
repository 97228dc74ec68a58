//! What became of what was offered to each destination, as families of /metrics.

use super::kubernetes;
use podopsy_deliver::Ledger;
use podopsy_deliver::kubernetes::Dropped;
use podopsy_model::metric::Family;

/// offered = delivered + lost + waiting, on every page.
pub fn families(ledgers: &[Ledger], dropped: Option<&Dropped>) -> Vec<Family> {
    let mut offered =
        Family::counter("podopsy_export_offered", "Events (pages, of metrics) offered to a destination.");
    let mut delivered = Family::counter("podopsy_export_delivered", "Events that a destination said it has.");
    let mut lost = Family::counter(
        "podopsy_export_lost",
        "Events that a destination will not get, by reason; of those refused_in_part it may have some.",
    );
    let mut retries = Family::counter("podopsy_export_retries", "Requests to a destination made again.");
    let mut waiting = Family::gauge("podopsy_export_waiting", "Events neither delivered nor lost yet.");
    let mut bytes = Family::gauge("podopsy_export_queue_bytes", "Memory that those events take, about.");
    let mut answers = Family::counter(
        "podopsy_export_answers",
        "Answers of a destination that were no success, by HTTP status (0: any other, beyond sixteen).",
    );
    for ledger in ledgers {
        let counts = ledger.counts();
        let labels = || vec![("destination", ledger.destination.to_owned())];
        offered.count(labels(), counts.offered);
        delivered.count(labels(), counts.delivered);
        for (reason, count) in counts.lost() {
            let mut labels = labels();
            labels.push(("reason", reason.to_owned()));
            lost.count(labels, count);
        }
        for (status, count) in ledger.answers() {
            let mut labels = labels();
            labels.push(("status", status.to_string()));
            answers.count(labels, count);
        }
        retries.count(labels(), counts.retries);
        waiting.number(labels(), counts.waiting as f64);
        bytes.number(labels(), counts.waiting_bytes as f64);
    }
    let mut all = vec![offered, delivered, lost, answers, retries, waiting, bytes];
    all.extend(dropped.map(kubernetes::family));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_documented() {
        let docs = include_str!("../../../docs/metrics.md");
        for family in families(&[], Some(&Dropped::default())) {
            assert!(docs.contains(&format!("`{}`", family.name)), "not in docs/metrics.md: {}", family.name);
        }
    }
}
