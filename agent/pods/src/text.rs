//! Escapes and bounds strings from a runtime, a folder's name or a label before they are stored.

use std::collections::BTreeMap;

pub use podopsy_model::text::field;

/// The largest number of labels of one pod.
pub const LABELS_MAX: usize = 128;

/// A pod's own labels, without the kubelet's `io.kubernetes.*`, and the number of labels that the bound dropped.
pub fn labels<'a>(
    raw: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> (BTreeMap<String, String>, u64) {
    let mut kept = BTreeMap::new();
    let mut dropped = 0;
    for (key, value) in raw {
        if key.starts_with("io.kubernetes.") {
            continue;
        }
        if kept.len() < LABELS_MAX {
            kept.insert(field(key), field(value));
        } else {
            dropped += 1;
        }
    }
    (kept, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded_and_counted() {
        let raw: BTreeMap<String, String> =
            (0..LABELS_MAX + 7).map(|n| (format!("k{n}"), "v".to_owned())).collect();
        let (kept, dropped) = labels(&raw);
        assert_eq!((kept.len(), dropped), (LABELS_MAX, 7));
        let kubelet = BTreeMap::from([("io.kubernetes.pod.uid".to_owned(), "x".to_owned())]);
        assert_eq!(labels(&kubelet), (BTreeMap::new(), 0));
    }
}
