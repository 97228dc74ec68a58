//! Interfaces, their addresses, and routes, by rtnetlink.

use std::io;
use std::net::IpAddr;
use std::ops::ControlFlow;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteType, RouteVia,
};
use netlink_sys::protocols::NETLINK_ROUTE;
use podopsy_model::text;

use crate::netlink::dump;
use crate::{Address, Interface, Route};

/// A namespace can have any number of interfaces, addresses and routes.
const ENTRIES_MAX: usize = 4096;

/// Interfaces with their addresses, by index.
pub(crate) fn interfaces() -> io::Result<Vec<Interface>> {
    let mut interfaces = Vec::new();
    dump(NETLINK_ROUTE, RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
        if let RouteNetlinkMessage::NewLink(link) = message {
            interfaces.push(interface(&link));
        }
        next(interfaces.len())
    })?;
    interfaces.sort_by_key(|interface| interface.index);
    let mut seen = 0;
    dump(NETLINK_ROUTE, RouteNetlinkMessage::GetAddress(AddressMessage::default()), |message| {
        if let RouteNetlinkMessage::NewAddress(message) = message {
            let has_it = |interface: &&mut Interface| interface.index == message.header.index;
            if let Some((interface, address)) = interfaces.iter_mut().find(has_it).zip(address(&message)) {
                interface.addresses.push(address);
            }
        }
        seen += 1;
        next(seen)
    })?;
    Ok(interfaces)
}

fn next(count: usize) -> ControlFlow<()> {
    if count < ENTRIES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
}

fn interface(link: &LinkMessage) -> Interface {
    let mut interface = Interface {
        index: link.header.index,
        name: String::new(),
        is_up: link.header.flags.contains(LinkFlags::Up),
        mtu: None,
        mac: String::new(),
        addresses: Vec::new(),
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name = text::escape(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = Some(*mtu),
            LinkAttribute::Address(mac) => interface.mac = colons(mac),
            _ => {}
        }
    }
    interface
}

fn colons(mac: &[u8]) -> String {
    mac.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// Of a point-to-point link, `Local` is this end's address and `Address` the peer's.
fn address(message: &AddressMessage) -> Option<Address> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    let ip = local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(ip) => Some(*ip),
            _ => None,
        })
    });
    Some(Address { ip: ip?, prefix: message.header.prefix_len })
}

/// Routes of the main table.
pub(crate) fn routes(interfaces: &[Interface]) -> io::Result<Vec<Route>> {
    let mut routes = Vec::new();
    let mut seen = 0;
    dump(NETLINK_ROUTE, RouteNetlinkMessage::GetRoute(RouteMessage::default()), |message| {
        if let RouteNetlinkMessage::NewRoute(message) = message {
            routes.extend(route(&message, interfaces));
        }
        seen += 1;
        next(seen)
    })?;
    Ok(routes)
}

fn route(message: &RouteMessage, interfaces: &[Interface]) -> Option<Route> {
    let kind = kind(message.header.kind)?;
    if message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let name = |index: &u32| {
        let interface = interfaces.iter().find(|interface| interface.index == *index);
        interface.map_or_else(|| format!("if{index}"), |interface| interface.name.clone())
    };
    let mut route = Route {
        destination: "default".to_owned(),
        gateways: Vec::new(),
        interface: String::new(),
        source: None,
        metric: None,
        kind,
    };
    let prefix = message.header.destination_prefix_length;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                route.destination = ip(to).map(|ip| format!("{ip}/{prefix}"))?;
            }
            RouteAttribute::Oif(index) => route.interface = name(index),
            RouteAttribute::PrefSource(source) => route.source = ip(source),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric),
            RouteAttribute::MultiPath(hops) => {
                route.gateways.extend(hops.iter().flat_map(|hop| gateways(&hop.attributes)));
                let names = hops.iter().map(|hop: &RouteNextHop| name(&hop.interface_index));
                route.interface = names.collect::<Vec<_>>().join(",");
            }
            _ => {}
        }
    }
    route.gateways.extend(gateways(&message.attributes));
    Some(route)
}

/// None: the kernel derives such routes from addresses.
fn kind(kind: RouteType) -> Option<&'static str> {
    match kind {
        RouteType::Unicast => Some("unicast"),
        RouteType::BlackHole => Some("blackhole"),
        RouteType::Unreachable => Some("unreachable"),
        RouteType::Prohibit => Some("prohibit"),
        _ => None,
    }
}

fn gateways(attributes: &[RouteAttribute]) -> impl Iterator<Item = IpAddr> {
    attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::Gateway(gateway) => ip(gateway),
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}
