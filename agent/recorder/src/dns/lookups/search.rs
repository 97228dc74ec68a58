//! resolv.conf: what a resolver makes of a name, and back from queries to the name.
//!
//! Must not know: where the file was, or when anything was asked.

use std::net::IpAddr;

use podopsy_model::lookup::{NameKnownBy, Search};
use podopsy_model::text;

/// glibc has no limit on search domains since 2.26, musl takes 256 bytes of them.
const DOMAINS_MAX: usize = 32;
const SERVERS_MAX: usize = 8;
/// A domain name's longest presentation form without escapes.
const NAME_MAX: usize = 254;

/// What is of use in a resolv.conf (man 5 resolv.conf).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// Lower case, without final dots.
    pub search: Vec<String>,
    pub nameservers: Vec<IpAddr>,
    pub ndots: u32,
    /// Seconds.
    pub timeout: u32,
    pub attempts: u32,
}

impl Default for ResolvConf {
    /// What an empty file means.
    fn default() -> Self {
        ResolvConf { search: Vec::new(), nameservers: Vec::new(), ndots: 1, timeout: 5, attempts: 2 }
    }
}

impl ResolvConf {
    /// Reads the file's bytes, which are the container's to choose: what makes no sense is passed over, as resolvers do.
    pub fn parse(bytes: &[u8]) -> ResolvConf {
        let mut out = ResolvConf::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                // The last of them wins, of both words.
                Some("search") => out.search = words.filter_map(domain).take(DOMAINS_MAX).collect(),
                Some("domain") => out.search = words.next().and_then(domain).into_iter().collect(),
                Some("nameserver") if out.nameservers.len() < SERVERS_MAX => {
                    // A link-local address may carry its interface.
                    let address: Option<IpAddr> =
                        words.next().and_then(|word| word.split('%').next()?.parse().ok());
                    out.nameservers.extend(address);
                }
                Some("options") => words.for_each(|option| out.option(option)),
                _ => {}
            }
        }
        out
    }

    fn option(&mut self, option: &str) {
        let Some((name, value)) = option.split_once(':') else { return };
        let Ok(value) = value.parse::<u32>() else { return };
        match name {
            "ndots" => self.ndots = value.min(15),
            "timeout" => self.timeout = value.clamp(1, 30),
            "attempts" => self.attempts = value.clamp(1, 5),
            _ => {}
        }
    }

    pub fn shown(&self) -> Search {
        Search { domains: self.search.iter().map(|domain| text::escape(domain)).collect(), ndots: self.ndots }
    }

    /// The names that are asked for in turn until one is answered (names in lower case, without final dots).
    ///
    /// With `ndots` dots or more the name itself comes first (glibc, c-ares, Go; musl then tries nothing else), else last.
    fn candidates(&self, name: &str) -> Vec<String> {
        let expanded = self.search.iter().map(|domain| join(name, domain));
        let own = std::iter::once(name.to_owned());
        if dots(name) >= self.ndots { own.chain(expanded).collect() } else { expanded.chain(own).collect() }
    }

    /// Every name that an application may have asked for when `queried` is asked for.
    pub fn bases(&self, queried: &str) -> Vec<String> {
        let cut = self.search.iter().filter_map(|domain| match domain.as_str() {
            "" => None,
            domain => queried.strip_suffix(domain)?.strip_suffix('.').filter(|rest| !rest.is_empty()),
        });
        let mut out: Vec<String> = cut.map(str::to_owned).collect();
        out.push(queried.to_owned());
        out
    }

    /// The name that explains these queries, asked for in this order, and whether nothing can follow the last of them.
    pub fn asked(&self, queried: &[&str]) -> Option<(String, bool)> {
        let bases = self.bases(queried.first()?);
        let explains = |whole: bool| {
            bases.iter().find_map(|base| {
                let candidates = self.candidates(base);
                let fits = match whole {
                    true => candidates.iter().zip(queried).all(|(candidate, name)| candidate == name),
                    false => is_subsequence(queried, &candidates),
                };
                let last = candidates.last().map(String::as_str) == queried.last().copied();
                (fits && queried.len() <= candidates.len()).then(|| (base.clone(), last))
            })
        };
        // In turn from the first on; with some of them lost; else the one name was absolute.
        explains(true).or_else(|| explains(false)).or_else(|| match queried {
            [one] => Some(((*one).to_owned(), true)),
            _ => None,
        })
    }
}

fn is_subsequence(names: &[&str], of: &[String]) -> bool {
    let mut rest = of.iter();
    names.iter().all(|name| rest.any(|candidate| candidate == name))
}

fn join(name: &str, domain: &str) -> String {
    if domain.is_empty() { name.to_owned() } else { format!("{name}.{domain}") }
}

fn domain(word: &str) -> Option<String> {
    let name = word.strip_suffix('.').unwrap_or(word);
    (name.len() <= NAME_MAX).then(|| text::escape(name).to_ascii_lowercase())
}

/// Dots between labels; one that is escaped is none.
pub fn dots(name: &str) -> u32 {
    let mut escaped = false;
    let mut count = 0;
    for byte in name.bytes() {
        count += u32::from(byte == b'.' && !escaped);
        escaped = byte == b'\\' && !escaped;
    }
    count
}

/// The name behind these queries when no search list is known: what they have in common.
pub fn inferred(queried: &[&str]) -> (String, NameKnownBy) {
    let (Some(first), true) = (queried.first(), queried.len() > 1) else {
        return (queried.first().copied().unwrap_or_default().to_owned(), NameKnownBy::Query);
    };
    let mut common: Vec<&str> = first.split('.').collect();
    for name in queried {
        let same = common.iter().zip(name.split('.')).take_while(|(a, b)| **a == *b).count();
        common.truncate(same);
    }
    (common.join("."), NameKnownBy::Inferred)
}

/// May these two be one lookup's, by their names alone? Search lists nest: `x.a.b` and `x.b`, or `x.a.b` and `x`.
pub fn nest(one: &str, other: &str) -> bool {
    let (a, b): (Vec<&str>, Vec<&str>) = (one.split('.').collect(), other.split('.').collect());
    let common = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[common..], &b[common..]);
    common > 0 && (a.ends_with(b) || b.ends_with(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> ResolvConf {
        ResolvConf::parse(
            b"# made by the kubelet\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\n\
              search shop.svc.cluster.local svc.cluster.local. CLUSTER.local\noptions ndots:5 timeout:2 edns0 attempts:99\n",
        )
    }

    #[test]
    fn a_pods_resolv_conf_is_read() {
        let resolv = cluster();
        assert_eq!(resolv.search, ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        assert_eq!((resolv.ndots, resolv.timeout, resolv.attempts), (5, 2, 5));
        assert_eq!(resolv.nameservers, ["10.96.0.10".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
        assert_eq!(ResolvConf::parse(b""), ResolvConf::default());
        assert_eq!(ResolvConf::parse(b"search a b\ndomain c d\n").search, ["c"]);
    }

    #[test]
    fn garbage_is_bounded_and_passed_over() {
        let mut bytes =
            b"search \x1b[2J \xff\xfe \0\noptions ndots:-1 ndots:4294967296 timeout:x\nnameserver nope\n"
                .to_vec();
        bytes.extend(b"nameserver 1.1.1.1\n".repeat(1000));
        bytes.extend(format!("search {}\n", "x ".repeat(10_000)).bytes());
        let resolv = ResolvConf::parse(&bytes);
        assert_eq!(
            (resolv.search.len(), resolv.nameservers.len(), resolv.ndots),
            (DOMAINS_MAX, SERVERS_MAX, 1)
        );
        assert!(ResolvConf::parse(b"search \x1b[2J\n").search[0].starts_with("\\x1b"));
        assert!(ResolvConf::parse(format!("search {}\n", "y".repeat(300)).as_bytes()).search.is_empty());
    }

    #[test]
    fn queries_lead_back_to_the_name() {
        let resolv = cluster();
        let asked = |names: &[&str]| resolv.asked(names);
        let name = |name: &str, last| Some((name.to_owned(), last));
        assert_eq!(asked(&["pay.shop.svc.cluster.local"]), name("pay", false));
        assert_eq!(
            asked(&["pay.shop.shop.svc.cluster.local", "pay.shop.svc.cluster.local"]),
            name("pay.shop", false)
        );
        let all = ["a.org.shop.svc.cluster.local", "a.org.svc.cluster.local", "a.org.cluster.local", "a.org"];
        assert_eq!(asked(&all), name("a.org", true));
        // The first was lost.
        assert_eq!(asked(&all[1..]), name("a.org", true));
        // Five dots: first as it is. With fewer, only a final dot can have made it the first.
        assert_eq!(asked(&["a.b.c.d.e.org"]), name("a.b.c.d.e.org", false));
        assert_eq!(asked(&["a.org"]), name("a.org", true));
        assert_eq!(asked(&["a.org", "b.org"]), None);
    }

    #[test]
    fn without_a_search_list_names_are_compared() {
        assert_eq!(inferred(&["a.org.x.y", "a.org.y", "a.org"]), ("a.org".to_owned(), NameKnownBy::Inferred));
        assert_eq!(inferred(&["a.org"]), ("a.org".to_owned(), NameKnownBy::Query));
        assert!(nest("a.org.shop.svc.cluster.local", "a.org.svc.cluster.local") && nest("a.org.x", "a.org"));
        assert!(!nest("api.shop.svc.local", "api.finance.svc.local") && !nest("a.org", "b.org"));
        assert_eq!(dots("a\\.b.c"), 1);
    }
}
