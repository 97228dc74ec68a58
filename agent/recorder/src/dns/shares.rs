//! Each container's share of DNS events while events are shed: a token bucket that fills at the rate of the max-min fair
//! share. A container below its share loses nothing, and the largest user is cut first.

use std::collections::HashMap;

use crate::fair::fair_level;
use crate::shed::ShedStep;

/// Events are counted over this time, in ns; then the share is computed again.
const WINDOW_NS: u64 = 1_000_000_000;
/// The bucket holds the events of this many seconds at the container's share.
const DEPTH_SECONDS: f64 = 2.0;

/// The events of all containers, by memory cgroup id.
#[derive(Debug, Default)]
pub(crate) struct EventShares {
    users: HashMap<u64, User>,
    window_ns: u64,
    /// Events a second that each container may have.
    share: f64,
}

#[derive(Debug)]
struct User {
    /// Events of this window that were due, shed or not.
    due: u32,
    tokens: f64,
    filled_ns: u64,
}

impl EventShares {
    /// Counts an event that is due. Returns whether it is within its container's share, when all together may have
    /// `allowed` a second. Where a container has too many, its answers are left out first, then slow ones, then failures.
    pub fn admit(&mut self, cgroup_id: u64, step: ShedStep, now_ns: u64, allowed: u64) -> bool {
        self.begin_window(now_ns, allowed as f64);
        let depth = (self.share * DEPTH_SECONDS).max(1.0);
        let new = || User { due: 0, tokens: depth, filled_ns: now_ns };
        let user = self.users.entry(cgroup_id).or_insert_with(new);
        user.due = user.due.saturating_add(1);
        let seconds = now_ns.saturating_sub(user.filled_ns) as f64 / 1e9;
        user.tokens = (user.tokens + seconds * self.share).min(depth);
        user.filled_ns = user.filled_ns.max(now_ns);
        let kept_for_others = match step {
            ShedStep::DnsFailures => 0.0,
            ShedStep::DnsSlow => depth / 3.0,
            _ => depth * 2.0 / 3.0,
        };
        let is_within = user.tokens >= 1.0 + kept_for_others;
        if is_within {
            user.tokens -= 1.0;
        }
        is_within
    }

    /// Takes the tokens of an event that is reported whatever the share, because its step is not shed.
    pub fn take(&mut self, cgroup_id: u64) {
        if let Some(user) = self.users.get_mut(&cgroup_id) {
            user.tokens = (user.tokens - 1.0).max(0.0);
        }
    }

    fn begin_window(&mut self, now_ns: u64, allowed: f64) {
        let elapsed_ns = now_ns.saturating_sub(self.window_ns);
        if elapsed_ns < WINDOW_NS {
            return;
        }
        // After a pause there is no rate to judge by.
        let seconds = if elapsed_ns < 10 * WINDOW_NS { elapsed_ns as f64 / 1e9 } else { f64::INFINITY };
        let rates = self.users.values().map(|user| f64::from(user.due) / seconds);
        self.share = fair_level(rates, allowed).unwrap_or(allowed);
        self.window_ns = now_ns;
        self.users.retain(|_, user| user.due > 0);
        for user in self.users.values_mut() {
            user.due = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    /// Runs a minute; each user asks at its rate. Returns how many events of each were admitted in the last five seconds.
    fn run(rates: &[(u64, u64, ShedStep)], allowed: u64) -> Vec<u64> {
        let mut shares = EventShares::default();
        let mut admitted = vec![0; rates.len()];
        for ms in 0..60_000 {
            for (at, &(id, rate, step)) in rates.iter().enumerate() {
                let due = (ms + 1) * rate / 1000 - ms * rate / 1000;
                for _ in 0..due {
                    let is_within = shares.admit(id, step, (60_000 + ms) * MS, allowed);
                    admitted[at] += u64::from(is_within && ms >= 55_000);
                }
            }
        }
        admitted
    }

    fn near(number: u64, expected: u64) -> bool {
        number.abs_diff(expected) * 20 <= expected.max(20)
    }

    #[test]
    fn the_largest_users_are_cut_and_a_small_one_loses_nothing() {
        let failures = ShedStep::DnsFailures;
        let got = run(&[(1, 350, failures), (2, 350, failures), (3, 350, failures), (4, 10, failures)], 1000);
        assert_eq!(got[3], 50);
        assert!(got[..3].iter().all(|number| near(*number, 5 * 330)), "{got:?}");
        let got = run(&[(1, 5000, failures), (2, 10, failures), (3, 40, failures)], 100);
        assert_eq!(got[1..], [50, 200]);
        assert!(near(got[0], 5 * 50), "{got:?}");
    }

    #[test]
    fn many_users_share_and_a_burst_of_a_small_one_passes() {
        let mut rates: Vec<_> = (10..74).map(|id| (id, 500, ShedStep::DnsFailures)).collect();
        rates.push((1, 5, ShedStep::DnsFailures));
        let got = run(&rates, 1000);
        assert_eq!(got[64], 25, "{got:?}");
        assert!(near(got[..64].iter().sum(), 5 * 995), "{got:?}");
    }

    #[test]
    fn a_user_loses_its_answers_before_its_failures() {
        let (answers, slow, failures) = (ShedStep::DnsAnswers, ShedStep::DnsSlow, ShedStep::DnsFailures);
        let got = run(&[(1, 50, answers), (1, 50, slow), (1, 50, failures), (2, 10, answers)], 70);
        assert_eq!(got[3], 50, "another container's answers");
        assert_eq!(got[2], 250, "failures are within its share of 60: {got:?}");
        assert_eq!(got[0], 0, "{got:?}");
        assert!(got[1] > 0, "{got:?}");
    }

    #[test]
    fn within_the_budget_all_pass() {
        let failures = ShedStep::DnsFailures;
        assert_eq!(run(&[(1, 60, failures), (2, 40, failures)], 100), [300, 200]);
    }
}
