//! Max-min fairness: how much each user of a shared resource may have, so that the largest users lose first.

/// The level at which users are cut so that together they use `total`. A user below it keeps all that it wants. None: all of
/// them together want no more than `total`.
pub(crate) fn fair_level(wanted: impl IntoIterator<Item = f64>, total: f64) -> Option<f64> {
    let mut wanted: Vec<f64> = wanted.into_iter().collect();
    wanted.sort_unstable_by(f64::total_cmp);
    let (mut left, mut users) = (total, wanted.len());
    for want in wanted {
        let share = left / users as f64;
        if want > share {
            return Some(share.max(0.0));
        }
        left -= want;
        users -= 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_below_the_level_keep_what_they_want_and_the_rest_share_equally() {
        assert_eq!(fair_level([350.0, 350.0, 350.0, 1.0], 1000.0), Some(333.0));
        assert_eq!(fair_level([5.0, 900.0, 20.0], 100.0), Some(75.0));
        assert_eq!(fair_level([900.0], 100.0), Some(100.0));
        assert_eq!(fair_level([50.0, 50.0], 100.0), None);
        assert_eq!(fair_level(Vec::new(), 100.0), None);
        assert_eq!(fair_level([3.0, 4.0], 0.0), Some(0.0));
    }

    #[test]
    fn what_users_get_is_the_total() {
        for total in [0.0, 7.0, 50.0, 320.0] {
            let wanted = [1.0, 2.0, 100.0, 33.0, 200.0, 33.0];
            let level = fair_level(wanted, total).expect("they want more");
            let given: f64 = wanted.iter().map(|want| want.min(level)).sum();
            assert!((given - total).abs() < 1e-9, "{total}: {given}");
        }
    }
}
