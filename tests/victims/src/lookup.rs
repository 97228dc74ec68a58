//! The C library's name lookup, which applications use: with resolv.conf, search domains and retries.

use std::ffi::{CStr, CString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Looks `name` up by `getaddrinfo`; the error is glibc's message.
///
/// Both families are requested, so that A and AAAA are sent together, as by real programs.
#[inline(never)]
pub fn resolve(name: &str) -> Result<Vec<IpAddr>, String> {
    let name = CString::new(name).map_err(|_| "name holds a NUL".to_owned())?;
    // SAFETY: addrinfo is plain data for which all-zero is the documented start.
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_family = libc::AF_UNSPEC;
    hints.ai_socktype = libc::SOCK_STREAM;
    let mut list = std::ptr::null_mut();
    // SAFETY: name and hints outlive the call, and `list` receives a list that is freed below.
    let code = unsafe { libc::getaddrinfo(name.as_ptr(), std::ptr::null(), &hints, &mut list) };
    if code != 0 {
        // SAFETY: gai_strerror returns a static NUL-terminated string for every code.
        let text = unsafe { CStr::from_ptr(libc::gai_strerror(code)) };
        return Err(text.to_string_lossy().into_owned());
    }
    let mut addresses = Vec::new();
    let mut at = list;
    while !at.is_null() {
        // SAFETY: `at` walks the list that getaddrinfo returned, up to its null end.
        let info = unsafe { &*at };
        match info.ai_family {
            libc::AF_INET => {
                // SAFETY: with this family, ai_addr points to a sockaddr_in.
                let address = unsafe { &*info.ai_addr.cast::<libc::sockaddr_in>() };
                addresses.push(IpAddr::V4(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr))));
            }
            libc::AF_INET6 => {
                // SAFETY: with this family, ai_addr points to a sockaddr_in6.
                let address = unsafe { &*info.ai_addr.cast::<libc::sockaddr_in6>() };
                addresses.push(IpAddr::V6(Ipv6Addr::from(address.sin6_addr.s6_addr)));
            }
            _ => {}
        }
        at = info.ai_next;
    }
    // SAFETY: the list came from getaddrinfo and is not used after this.
    unsafe { libc::freeaddrinfo(list) };
    Ok(addresses)
}
