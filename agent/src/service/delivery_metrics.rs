//! The counters of all destinations, as metric families of `/metrics`.

use super::kubernetes;
use podopsy_deliver::DestinationStats;
use podopsy_deliver::kubernetes::DroppedEvents;
use podopsy_model::metric::MetricFamily;

/// In each snapshot, offered = delivered + lost + waiting.
pub fn families(destinations: &[DestinationStats], dropped: Option<&DroppedEvents>) -> Vec<MetricFamily> {
    let mut offered = MetricFamily::counter(
        "podopsy_export_offered",
        "Items (events, profiles, snapshots of metrics) offered to a destination.",
    );
    let mut delivered =
        MetricFamily::counter("podopsy_export_delivered", "Items that a destination accepted.");
    let mut lost = MetricFamily::counter(
        "podopsy_export_lost",
        "Items that a destination will not get, by reason; it may have some of those refused_in_part.",
    );
    let mut retries =
        MetricFamily::counter("podopsy_export_retries", "Requests to a destination that were sent again.");
    let mut waiting =
        MetricFamily::gauge("podopsy_export_waiting", "Items that are neither delivered nor lost yet.");
    let mut bytes =
        MetricFamily::gauge("podopsy_export_queue_bytes", "The approximate memory of the items that wait.");
    let mut answers = MetricFamily::counter(
        "podopsy_export_answers",
        "Unsuccessful responses of a destination, by HTTP status (0: all statuses after the first sixteen).",
    );
    for stats in destinations {
        let counts = stats.counts();
        let labels = || vec![("destination", stats.destination.to_owned())];
        offered.count(labels(), counts.offered);
        delivered.count(labels(), counts.delivered);
        for (reason, count) in counts.lost() {
            let mut labels = labels();
            labels.push(("reason", reason.as_str().to_owned()));
            lost.count(labels, count);
        }
        for (status, count) in stats.failed_responses() {
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
