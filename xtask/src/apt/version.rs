//! The order of Debian package versions, as `dpkg --compare-versions` defines it (deb-version(7)).

use std::cmp::Ordering;

/// Compares two versions, each `[EPOCH:]UPSTREAM[-REVISION]`.
pub fn compare(left: &str, right: &str) -> Ordering {
    let (left, right) = (Parts::new(left), Parts::new(right));
    let epochs = left.epoch.cmp(&right.epoch);
    epochs
        .then_with(|| compare_part(left.upstream, right.upstream))
        .then_with(|| compare_part(left.revision, right.revision))
}

struct Parts<'a> {
    epoch: u64,
    upstream: &'a str,
    revision: &'a str,
}

impl<'a> Parts<'a> {
    fn new(version: &'a str) -> Self {
        let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        Self { epoch: epoch.parse().unwrap_or(0), upstream, revision }
    }
}

/// Compares a non-digit prefix by character, then a number by value, and so on to the end.
fn compare_part(mut left: &str, mut right: &str) -> Ordering {
    while !(left.is_empty() && right.is_empty()) {
        let order = compare_text(take_text(&mut left), take_text(&mut right));
        let order = order.then_with(|| compare_digits(take_digits(&mut left), take_digits(&mut right)));
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

fn take_text<'a>(from: &mut &'a str) -> &'a str {
    take(from, |c| !c.is_ascii_digit())
}

fn take_digits<'a>(from: &mut &'a str) -> &'a str {
    take(from, |c| c.is_ascii_digit())
}

fn take<'a>(from: &mut &'a str, belongs: impl Fn(char) -> bool) -> &'a str {
    let (head, tail) = from.split_at(from.find(|c| !belongs(c)).unwrap_or(from.len()));
    *from = tail;
    head
}

fn compare_text(left: &str, right: &str) -> Ordering {
    let length = left.len().max(right.len());
    let weights = |text: &str| -> Vec<i32> {
        text.chars().map(weight).chain(std::iter::repeat(0)).take(length).collect()
    };
    weights(left).cmp(&weights(right))
}

/// `~` sorts before the end of the text (0), letters after it, everything else after the letters.
fn weight(c: char) -> i32 {
    match c {
        '~' => -1,
        c if c.is_ascii_alphabetic() => c as i32,
        c => c as i32 + 256,
    }
}

/// By value, of any length: without leading zeros, the longer number is the greater one.
fn compare_digits(left: &str, right: &str) -> Ordering {
    let (left, right) = (left.trim_start_matches('0'), right.trim_start_matches('0'));
    left.len().cmp(&right.len()).then_with(|| left.cmp(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_dpkg_orders_them() {
        let ascending = [
            ("1:9.18.33-1~deb12u2", "1:9.18.47-1~deb12u1"),
            ("9.19.0-1", "1:9.18.47-1~deb12u1"),
            ("1:2.66-4+deb12u2+b2", "1:2.66-4+deb12u3+b1"),
            ("2.9", "2.10"),
            ("1.0~rc1", "1.0"),
            ("1.0", "1.0a"),
            ("1.0-1", "1.0-1+b1"),
            ("1.0-1~bpo12+1", "1.0-1"),
            ("1.0a", "1.0+b1"),
            ("1.6.20~ds1-1", "1.6.20~ds1-1+deb12u1"),
            ("1.0", "1.0-0.1"),
        ];
        for (lower, higher) in ascending {
            assert_eq!(compare(lower, higher), Ordering::Less, "{lower} {higher}");
            assert_eq!(compare(higher, lower), Ordering::Greater, "{higher} {lower}");
        }
        for (left, right) in [("1.0", "1.0"), ("0:1.0", "1.0"), ("1.00", "1.0"), ("1.0", "1.0-0")] {
            assert_eq!(compare(left, right), Ordering::Equal, "{left} {right}");
        }
    }
}
