//! Queries → lookups: one record for each name that an application looked up. Pure: no I/O, no clock, no pods.
//!
//! What real resolvers do, each according to its source:
//!
//! | resolver | order of names | A and AAAA | retries | ends at |
//! |---|---|---|---|---|
//! | glibc (`res_query.c`, `res_send.c`) | `ndots` dots or more: the name, then each search domain; else the domains, then the name | one socket, together | the same id on the same socket after `timeout` (one transaction with more `sends`); each server in turn; SERVFAIL, REFUSED and NOTIMP go on to the next server, `attempts` rounds | an answer; a timeout; NXDOMAIN, NODATA and SERVFAIL go on to the next name |
//! | musl (`lookup_name.c`, `res_msend.c`) | `ndots` dots or more: the name only; else the domains, then the name | together, and to all servers at once | the same ids on the same socket | anything but NXDOMAIN |
//! | Go (`dnsclient_unix.go`) | as glibc | two sockets, together | new id and new socket, `attempts` times for each server | an answer; an error goes on to the next name |
//! | c-ares (`ares_search.c`, `ares_send.c`) | as glibc | two queries, together | the same id; each server in turn, 3 or 4 rounds | an answer; a timeout; NXDOMAIN and NODATA go on |
//!
//! All of them but musl before 1.2.4 ask again by TCP when an answer was truncated. A name with a final dot is never
//! expanded. If a shorter name with the first search domain gives the same query, the shorter name is reported. A single
//! query for a name with another search domain was for that name itself: a shorter name would have been asked for with
//! the first domain before.
//!
//! The rules that follow from this:
//!
//! - A query belongs to a lookup of the same process under three conditions. One name explains both: by the process's
//!   own resolv.conf, or without it by nesting names (`x.a.b` and `x.b`). They are at most a second apart. And it does not
//!   start the next lookup of that name, as these do:
//!   - a question that had been answered, positively or negatively, before the query was sent;
//!   - a query for an earlier name of the search list than one that had been asked for before (by type: some clients look
//!     A and AAAA up independently);
//!   - a question to the same server with a new id, after as many ids as `attempts`, or after one that was repeated, or,
//!     if there is one server, when nothing had been under way for 100 ms.
//! - A timeout becomes known long after the client has gone on. Therefore a lookup is reported one second after
//!   `--dns-timeout` has passed since its last outcome: `LookupBuilder::due`. While a question is open (the last name
//!   has not been asked for, or A without AAAA), the lookup is also held for the client's further attempts, because a
//!   query that is sent again with the same id times out that much later.
//! - glibc asks for both types by TCP when one answer was truncated. It then asks for everything again with twice the
//!   buffer until an answer fits (`ERANGE`; it starts with 1 KiB, which is about 25 addresses). That is one lookup if
//!   the answer was truncated and the next query followed within 100 ms. (A large answer that fits into a datagram
//!   makes two lookups.)
//! - A query with the id of another one, to another server, belongs to the same lookup, also if that one had been answered: musl
//!   asks all servers, and a resolver on the node answers before it has asked the next one.
//! - Two threads that look up the same name at the same time make one lookup with twice the queries. One after the
//!   other they make two lookups.
//! - If any question was answered, the lookup was answered. Otherwise the result is the worst result of its questions,
//!   as in glibc (Go takes the last one).
//! - If only failures are recorded, an end that could have been an answer is `unseen` and is not reported. An error
//!   that was followed by a successful retry looks like the end of the lookup: `saw` says that only failures were
//!   recorded.
//! - SERVFAIL or REFUSED for one name, and for no other name of the search list, is then an end, too: musl stops there, and
//!   glibc and Go if the name is absolute. If it was the only name, the lookup has that name. If the client has gone on
//!   after such an error, the lookup failed only if the last name failed, too.

mod builder;
pub mod diagnosis;
mod judge;
mod search;
pub mod summary;

pub use builder::{ClosedLookup, LookupBuilder, LookupQuery, ProcessKey};
pub use search::ResolvConf;

#[cfg(test)]
mod repeated_tests;
#[cfg(test)]
mod tests;
