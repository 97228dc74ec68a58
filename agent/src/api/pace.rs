//! How fast each TCP client is answered. Any host may connect, so that what the answers cost is bounded: a request beyond the
//! rate waits. It is never refused, because the kubelet or Prometheus may have the same address as a client that floods.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// The work that a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A page of metrics.
    Page,
    /// Health, or an error.
    Other,
}

/// Time between two pages. All clients share it.
const PAGE_INTERVAL: Duration = Duration::from_millis(100);
/// Pages that a client gets at once after a pause.
const PAGE_BURST: u32 = 3;
/// A client that asked for a page within this time is one of those that share.
const ACTIVE: Duration = Duration::from_secs(10);
/// The longest wait for a page. Prometheus waits ten seconds.
const PAGE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Time between two other answers to one client.
const OTHER_INTERVAL: Duration = Duration::from_millis(20);
/// Other answers that a client gets at once after a pause.
const OTHER_BURST: u32 = 20;
/// The longest wait for another answer. The kubelet waits one second.
const OTHER_WAIT_MAX: Duration = Duration::from_millis(300);
/// Clients that are remembered.
const CLIENTS_MAX: usize = 1024;

/// A client by its address. IPv6 clients have a network of 64 bits each, and IPv4 addresses have one form.
pub fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        v4 => v4,
    }
}

/// What each client has had.
#[derive(Debug, Default)]
pub struct Pace {
    clients: HashMap<IpAddr, Client>,
}

#[derive(Debug)]
struct Client {
    /// Until when what it has had is paid for. None: it has had nothing.
    pages_paid: Option<Instant>,
    others_paid: Option<Instant>,
    last_page: Option<Instant>,
    last: Instant,
}

impl Pace {
    /// How long an answer to this client has to wait. Counts the answer.
    pub fn delay(&mut self, from: IpAddr, work: Work, now: Instant) -> Duration {
        let from = client(from);
        self.forget_one(&from, now);
        let new = || Client { pages_paid: None, others_paid: None, last_page: None, last: now };
        let client = self.clients.entry(from).or_insert_with(new);
        client.last = now;
        match work {
            Work::Page => client.last_page = Some(now),
            Work::Other => {
                return take(&mut client.others_paid, now, OTHER_INTERVAL, OTHER_BURST, OTHER_WAIT_MAX);
            }
        }
        let is_active = |client: &&Client| client.last_page.is_some_and(|at| now.duration_since(at) < ACTIVE);
        let active = self.clients.values().filter(is_active).count() as u32;
        let Some(client) = self.clients.get_mut(&from) else { return Duration::ZERO };
        take(&mut client.pages_paid, now, PAGE_INTERVAL * active, PAGE_BURST, PAGE_WAIT_MAX)
    }

    /// Makes a place for a new client.
    fn forget_one(&mut self, from: &IpAddr, now: Instant) {
        if self.clients.len() < CLIENTS_MAX || self.clients.contains_key(from) {
            return;
        }
        self.clients.retain(|_, client| now.duration_since(client.last) < ACTIVE);
        if self.clients.len() >= CLIENTS_MAX
            && let Some(oldest) =
                self.clients.iter().min_by_key(|(_, client)| client.last).map(|(from, _)| *from)
        {
            self.clients.remove(&oldest);
        }
    }
}

/// Takes one answer from a token bucket that is paid until `paid`; returns how long to wait for it.
fn take(
    paid: &mut Option<Instant>,
    now: Instant,
    interval: Duration,
    burst: u32,
    most: Duration,
) -> Duration {
    let earliest = now.checked_sub(interval * burst).unwrap_or(now);
    let due = paid.map_or(earliest, |paid| paid.max(earliest)) + interval;
    // The debt is bounded, too: requests whose connection was closed meanwhile have added to it.
    let due = due.min(now + most);
    *paid = Some(due);
    due.saturating_duration_since(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u16) -> IpAddr {
        IpAddr::from([10, 0, (n >> 8) as u8, n as u8])
    }

    /// Requests of each client for a minute, each as soon as the one before is answered; returns how many were answered.
    fn run(pace: &mut Pace, clients: u16, work: Work) -> u32 {
        let began = Instant::now() + Duration::from_secs(1000);
        let mut answered = 0;
        for client in 0..clients {
            // All clients are active before the first one is served.
            pace.delay(address(client), work, began);
        }
        let mut next = vec![Duration::ZERO; usize::from(clients)];
        while let Some((at, time)) = next.iter().copied().enumerate().min_by_key(|(_, time)| *time) {
            if time > Duration::from_secs(60) {
                break;
            }
            answered += 1;
            let delay = pace.delay(address(at as u16), work, began + time);
            next[at] = time + delay.max(Duration::from_millis(1));
        }
        answered
    }

    #[test]
    fn all_clients_together_get_ten_pages_a_second() {
        for clients in [1, 2, 10, 40] {
            let pages = run(&mut Pace::default(), clients, Work::Page);
            assert!((500..=600 + 4 * u32::from(clients)).contains(&pages), "{clients} clients: {pages}");
        }
    }

    #[test]
    fn a_client_that_asks_as_prometheus_does_never_waits_beside_one_that_floods() {
        let (mut pace, began) = (Pace::default(), Instant::now());
        for ms in 0..60_000u64 {
            let now = began + Duration::from_millis(ms);
            if ms % 5 == 0 {
                pace.delay(address(1), Work::Page, now);
            }
            if ms % 5000 == 0 {
                assert_eq!(pace.delay(address(2), Work::Page, now), Duration::ZERO, "after {ms} ms");
                assert_eq!(pace.delay(address(2), Work::Other, now), Duration::ZERO);
            }
        }
    }

    #[test]
    fn no_answer_waits_longer_than_its_client_does() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let delays: Vec<Duration> = (0..1000).map(|_| pace.delay(address(1), Work::Other, now)).collect();
        assert_eq!(delays[..20], [Duration::ZERO; 20]);
        assert_eq!((delays[20], delays[999]), (OTHER_INTERVAL, OTHER_WAIT_MAX));
        let pages = (0..1000).map(|_| pace.delay(address(1), Work::Page, now)).max();
        assert_eq!(pages, Some(PAGE_WAIT_MAX));
    }

    #[test]
    fn clients_are_bounded_and_a_network_is_one_client() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for n in 0..5000 {
            pace.delay(address(n), Work::Other, now);
        }
        assert_eq!(pace.clients.len(), CLIENTS_MAX);
        let same = |a: &str, b: &str| client(a.parse().unwrap()) == client(b.parse().unwrap());
        assert!(same("2001:db8::1", "2001:db8::ffff:1") && !same("2001:db8::1", "2001:db8:0:1::1"));
        assert!(same("::ffff:10.0.0.1", "10.0.0.1") && !same("10.0.0.1", "10.0.0.2"));
    }
}
