//! Queries → lookups: what the application asked for, in one record. Pure: no I/O, no clock, no pods.
//!
//! What real resolvers do, each from its source, and what is made of it here:
//!
//! | resolver | names in turn | A and AAAA | again | ends at |
//! |---|---|---|---|---|
//! | glibc (`res_query.c`, `res_send.c`) | `ndots` dots or more: the name, then each search domain; else the domains, then the name | one socket, together | the same id on the same socket after `timeout` (one transaction with more `sends`); each server in turn; SERVFAIL, REFUSED and NOTIMP go on to the next server, `attempts` rounds | an answer; a timeout; NXDOMAIN, NODATA and SERVFAIL go on to the next name |
//! | musl (`lookup_name.c`, `res_msend.c`) | `ndots` dots or more: the name only; else the domains, then the name | together, and to all servers at once | the same ids on the same socket | anything but NXDOMAIN |
//! | Go (`dnsclient_unix.go`) | as glibc | two sockets, together | new id and new socket, `attempts` times for each server | an answer; an error goes on to the next name |
//! | c-ares (`ares_search.c`) | as glibc | two queries, together | each server in turn, 3 or 4 rounds | an answer; a timeout; NXDOMAIN and NODATA go on |
//!
//! A truncated answer is asked for again by TCP by all but musl before 1.2.4. A name with a final dot is never searched:
//! where its first search domain makes the same query of a shorter name, the shorter name is shown.
//!
//! The rules that follow:
//!
//! - A query belongs to a lookup of the same process if one name explains both (by the process's own resolv.conf, or
//!   without one by names that nest, `x.a.b` and `x.b`), if they lie at most a second apart, and if it is no question
//!   that had been answered (positively or not) before it was sent: that is the next lookup of that name.
//! - A timeout is known long after the client went on, and the query that it belongs to was sent first. So every lookup
//!   is held for the time that makes a timeout, and one second, before it is told: `LookupBuilder::due`. While a question is open
//!   (the last name has not been asked for, or A without AAAA), it is held for the client's further attempts, too: a query
//!   that is sent again with its id times out that much later.
//! - glibc asks for both types by TCP when one answer was truncated, and for everything once more, with twice the buffer,
//!   until an answer fits (`ERANGE`; it begins with 1 KiB, which is some 25 addresses). That is one lookup where the answer
//!   was truncated and the next query followed within 100 ms. (A large answer that fits into a datagram makes two.)
//! - Two threads that look up the same name at the same time are one lookup with twice the queries; one after the other
//!   they are two.
//! - What was answered is the result, whatever else failed. Otherwise it is the worst of what its questions got, as glibc
//!   would say it (Go says the last).
//! - Where only failures are recorded, an end that could have been an answer is `unseen`, and not told. An error that a
//!   retry mended looks as if it had been the end: `saw` says that failures are all there was to see.

mod builder;
pub mod diagnosis;
mod judge;
mod search;
pub mod summary;

pub use builder::{ClosedLookup, LookupBuilder, LookupQuery, ProcessKey};
pub use search::ResolvConf;

#[cfg(test)]
mod tests;
