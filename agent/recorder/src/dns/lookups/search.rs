//! resolv.conf: which queries a resolver makes from a name, and which name explains given queries.
//!
//! This module must not depend on where the file was read or when a query was sent.

use std::net::IpAddr;

use podopsy_model::lookup::{NameKnownBy, SearchList};
use podopsy_model::text;

/// Search domains at most. glibc has had no limit since 2.26; musl takes 256 bytes of them.
const DOMAINS_MAX: usize = 32;
const SERVERS_MAX: usize = 8;
/// The longest presentation form of a domain name, without escapes.
const NAME_MAX: usize = 254;

/// The parts of a resolv.conf that matter here (man 5 resolv.conf).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvConf {
    /// In lower case, without final dots.
    pub search: Vec<String>,
    pub nameservers: Vec<IpAddr>,
    pub ndots: u32,
    /// Seconds.
    pub timeout: u32,
    pub attempts: u32,
}

impl Default for ResolvConf {
    /// The meaning of an empty file.
    fn default() -> Self {
        ResolvConf { search: Vec::new(), nameservers: Vec::new(), ndots: 1, timeout: 5, attempts: 2 }
    }
}

impl ResolvConf {
    /// Parses the content of a file. The container's owner chooses it; invalid parts are ignored, as resolvers do.
    pub fn parse(bytes: &[u8]) -> ResolvConf {
        let mut out = ResolvConf::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut fields = line.split_ascii_whitespace();
            match fields.next() {
                // The last `search` or `domain` line replaces all earlier ones.
                Some("search") => out.search = fields.filter_map(parse_domain).take(DOMAINS_MAX).collect(),
                Some("domain") => out.search = fields.next().and_then(parse_domain).into_iter().collect(),
                Some("nameserver") if out.nameservers.len() < SERVERS_MAX => {
                    // A link-local address may be followed by its interface.
                    let address: Option<IpAddr> =
                        fields.next().and_then(|field| field.split('%').next()?.parse().ok());
                    out.nameservers.extend(address);
                }
                Some("options") => fields.for_each(|option| out.set_option(option)),
                _ => {}
            }
        }
        out
    }

    fn set_option(&mut self, option: &str) {
        let Some((name, value)) = option.split_once(':') else { return };
        let Ok(value) = value.parse::<u32>() else { return };
        match name {
            "ndots" => self.ndots = value.min(15),
            "timeout" => self.timeout = value.clamp(1, 30),
            "attempts" => self.attempts = value.clamp(1, 5),
            _ => {}
        }
    }

    /// The search path as events show it.
    pub fn to_search(&self) -> SearchList {
        SearchList {
            domains: self.search.iter().map(|domain| text::escape(domain)).collect(),
            ndots: self.ndots,
        }
    }

    /// The names that a resolver asks for in turn until one is answered (in lower case, without final dots).
    ///
    /// A name with `ndots` dots or more comes first itself (in glibc, c-ares and Go; musl tries nothing else). Any
    /// other name comes last.
    pub(super) fn candidates(&self, name: &str) -> Vec<String> {
        let expanded = self.search.iter().map(|domain| join(name, domain));
        let own = std::iter::once(name.to_owned());
        if dots(name) >= self.ndots { own.chain(expanded).collect() } else { expanded.chain(own).collect() }
    }

    /// The place of `queried` among the candidates of `base`; None: it is none of them.
    pub fn place(&self, base: &str, queried: &str) -> Option<usize> {
        let is_own_first = dots(base) >= self.ndots;
        let appended = queried.strip_prefix(base)?;
        if appended.is_empty() && is_own_first {
            return Some(0);
        }
        let domain = if appended.is_empty() { "" } else { appended.strip_prefix('.')? };
        match self.search.iter().position(|it| it == domain) {
            Some(at) => Some(at + usize::from(is_own_first)),
            None => appended.is_empty().then_some(self.search.len()),
        }
    }

    /// Every name that an application may have asked for if there is a query for `queried`.
    pub fn bases(&self, queried: &str) -> Vec<String> {
        let stripped = self.search.iter().filter_map(|domain| match domain.as_str() {
            "" => None,
            domain => queried.strip_suffix(domain)?.strip_suffix('.').filter(|rest| !rest.is_empty()),
        });
        let mut out: Vec<String> = stripped.map(str::to_owned).collect();
        out.push(queried.to_owned());
        out
    }

    /// The name that explains queries for these names, in this order, and whether no other name can follow the last
    /// one. None: no single name explains them.
    pub fn explain(&self, queried: &[&str]) -> Option<(String, bool)> {
        let bases = self.bases(queried.first()?);
        let find_base = |complete: bool| {
            bases.iter().find_map(|base| {
                let candidates = self.candidates(base);
                let fits = if complete {
                    candidates.iter().zip(queried).all(|(candidate, name)| candidate == name)
                } else {
                    is_subsequence(queried, &candidates)
                };
                let last = candidates.last().map(String::as_str) == queried.last().copied();
                (fits && queried.len() <= candidates.len()).then(|| (base.clone(), last))
            })
        };
        // First all queries from the first candidate on, then with some of them lost. A single query that is not the
        // first candidate of any name was for an absolute name.
        find_base(true).or_else(|| match queried {
            [name] => Some(((*name).to_owned(), true)),
            _ => find_base(false),
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

fn parse_domain(field: &str) -> Option<String> {
    let name = field.strip_suffix('.').unwrap_or(field);
    (name.len() <= NAME_MAX).then(|| text::escape(name).to_ascii_lowercase())
}

/// The number of dots between labels. An escaped dot is part of a label.
pub fn dots(name: &str) -> u32 {
    let mut escaped = false;
    let mut count = 0;
    for byte in name.bytes() {
        count += u32::from(byte == b'.' && !escaped);
        escaped = byte == b'\\' && !escaped;
    }
    count
}

/// The name behind queries for these names if no search list is known: the labels that they have in common.
pub fn infer_name(queried: &[&str]) -> (String, NameKnownBy) {
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

/// Whether two names can belong to one lookup, by the names alone. Search lists nest: `x.a.b` and `x.b`, or `x.a.b` and
/// `x`.
pub fn are_nested(one: &str, other: &str) -> bool {
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
    fn a_pods_resolv_conf_is_parsed() {
        let resolv = cluster();
        assert_eq!(resolv.search, ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        assert_eq!((resolv.ndots, resolv.timeout, resolv.attempts), (5, 2, 5));
        assert_eq!(resolv.nameservers, ["10.96.0.10".parse::<IpAddr>().unwrap(), "fe80::1".parse().unwrap()]);
        assert_eq!(ResolvConf::parse(b""), ResolvConf::default());
        assert_eq!(ResolvConf::parse(b"search a b\ndomain c d\n").search, ["c"]);
    }

    #[test]
    fn garbage_is_bounded_and_ignored() {
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
    fn the_name_is_found_from_the_queries() {
        let resolv = cluster();
        let explain = |names: &[&str]| resolv.explain(names);
        let name = |name: &str, last| Some((name.to_owned(), last));
        assert_eq!(explain(&["pay.shop.svc.cluster.local"]), name("pay", false));
        assert_eq!(
            explain(&["pay.shop.shop.svc.cluster.local", "pay.shop.svc.cluster.local"]),
            name("pay.shop", false)
        );
        let all = ["a.org.shop.svc.cluster.local", "a.org.svc.cluster.local", "a.org.cluster.local", "a.org"];
        assert_eq!(explain(&all), name("a.org", true));
        // The first query was lost.
        assert_eq!(explain(&all[1..]), name("a.org", true));
        // With five dots the name itself comes first. With fewer dots it comes first only if it had a final dot.
        assert_eq!(explain(&["a.b.c.d.e.org"]), name("a.b.c.d.e.org", false));
        assert_eq!(explain(&["a.org"]), name("a.org", true));
        assert_eq!(explain(&["pay.finance.svc.cluster.local"]), name("pay.finance.svc.cluster.local", true));
        assert_eq!(explain(&["a.org", "b.org"]), None);
    }

    #[test]
    fn the_place_of_a_name_is_that_among_the_candidates() {
        for ndots in [1, 5] {
            for search in ["a.b b", "a.b . b", ""] {
                let text = format!("search {search}\noptions ndots:{ndots}\n");
                let resolv = ResolvConf::parse(text.as_bytes());
                for base in ["x", "x.y", "a"] {
                    let all = resolv.candidates(base);
                    for name in &all {
                        let expected = all.iter().position(|candidate| candidate == name);
                        assert_eq!(resolv.place(base, name), expected, "{text} {base} {name}");
                    }
                    assert_eq!(resolv.place(base, "x.c"), None);
                    assert_eq!(resolv.place(base, &format!("{base}x.a.b")), None);
                }
            }
        }
    }

    #[test]
    fn without_a_search_list_the_name_is_inferred_from_common_labels() {
        assert_eq!(
            infer_name(&["a.org.x.y", "a.org.y", "a.org"]),
            ("a.org".to_owned(), NameKnownBy::Inferred)
        );
        assert_eq!(infer_name(&["a.org"]), ("a.org".to_owned(), NameKnownBy::Query));
        assert!(
            are_nested("a.org.shop.svc.cluster.local", "a.org.svc.cluster.local")
                && are_nested("a.org.x", "a.org")
        );
        assert!(!are_nested("api.shop.svc.local", "api.finance.svc.local") && !are_nested("a.org", "b.org"));
        assert_eq!(dots("a\\.b.c"), 1);
    }
}
