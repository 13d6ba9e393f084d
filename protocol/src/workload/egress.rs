//! Where a page or a guest may connect to: what an operator allows, and what is refused unasked.
//!
//! Owns: the ranges of addresses that belong to no public site, the entries of an allow list, and the
//! judgement of one address. Never resolves a name: the proxy does, once, and connects to the very
//! address that was judged, so that a name which answers differently the second time gains nothing.
//!
//! In this order: what belongs to the cluster is refused, whatever an entry says; what an entry names
//! is granted; what is public is granted; all else is refused. An address is judged in its shortest
//! form ([`canonical`]), so it matters not how somebody spelled it.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// What one node's pages and guests may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressRules {
    /// Entries that open what is refused otherwise.
    pub allow: Vec<Allow>,
    /// Where the cluster itself listens: this node and its peers. An unspecified address stands for
    /// every address that is not public.
    pub cluster: BTreeSet<SocketAddr>,
}

/// One entry of an allow list: `name`, `*.name`, `address` or `address/bits`, and perhaps `:port`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allow {
    what: What,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    /// The host as it was asked for.
    Name(String),
    /// Every name below this one, and not itself.
    Below(String),
    /// Addresses, however they were asked for.
    Net { first: IpAddr, bits: u8 },
}

/// Why an address is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EgressRefused {
    /// The cluster listens there; nothing opens it.
    #[error("{0} belongs to this cluster, and no entry of `egress_allow` opens it")]
    Cluster(SocketAddr),
    /// It is no address of one host; nothing opens it.
    #[error("{0} names no host")]
    Unspecified(IpAddr),
    /// It is not a public address.
    #[error("{address} is {range}")]
    Range {
        /// Which.
        address: IpAddr,
        /// What it is.
        range: Range,
    },
    /// It is public, and a machine of this cluster has it.
    #[error("{0} is the address of a machine of this cluster")]
    Machine(IpAddr),
}

impl EgressRefused {
    /// Whether an entry of the allow list would open it.
    pub fn may_be_allowed(&self) -> bool {
        matches!(
            self,
            EgressRefused::Range { .. } | EgressRefused::Machine(_)
        )
    }
}

/// What an address is that is not public.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// 127.0.0.0/8, ::1 (RFC 1122, RFC 4291).
    Loopback,
    /// 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 (RFC 1918), fc00::/7 (RFC 4193), fec0::/10.
    Private,
    /// 169.254.0.0/16 (RFC 3927), fe80::/10.
    LinkLocal,
    /// 100.64.0.0/10 (RFC 6598): behind a provider's address translation.
    Shared,
    /// Where clouds tell a machine its secrets.
    Metadata,
    /// 224.0.0.0/4, ff00::/8.
    Multicast,
    /// 255.255.255.255.
    Broadcast,
    /// For examples in documents (RFC 5737, RFC 3849, RFC 9637).
    Documentation,
    /// A form of IPv6 that carries an IPv4 address and is not in use any more: 6to4, Teredo, ::/96.
    Embedded,
    /// Whatever else the registries of IANA do not give to sites.
    Reserved,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Range::Loopback => "a loopback address",
            Range::Private => "a private address",
            Range::LinkLocal => "a link-local address",
            Range::Shared => "an address behind a provider's translation",
            Range::Metadata => "a cloud's metadata service",
            Range::Multicast => "a multicast address",
            Range::Broadcast => "the broadcast address",
            Range::Documentation => "an address for documents",
            Range::Embedded => "a form of IPv6 that hides another address",
            Range::Reserved => "a reserved address",
        })
    }
}

impl EgressRules {
    /// Whether a connection to `address` may be opened. `host` is what was asked for, in lower case: a
    /// name, or an address.
    pub fn judge(&self, host: &str, address: SocketAddr) -> Result<(), EgressRefused> {
        let ip = canonical(address.ip());
        let address = SocketAddr::new(ip, address.port());
        if ip.is_unspecified() {
            return Err(EgressRefused::Unspecified(ip));
        }
        let range = range_of(ip);
        if self.is_cluster(address, range) {
            return Err(EgressRefused::Cluster(address));
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        if self.allow.iter().any(|entry| entry.covers(host, address)) {
            return Ok(());
        }
        if let Some(range) = range {
            return Err(EgressRefused::Range { address: ip, range });
        }
        match self.cluster.iter().any(|own| canonical(own.ip()) == ip) {
            true => Err(EgressRefused::Machine(ip)),
            false => Ok(()),
        }
    }

    fn is_cluster(&self, address: SocketAddr, range: Option<Range>) -> bool {
        self.cluster.iter().any(|own| {
            let ip = canonical(own.ip());
            let is_there = ip == address.ip() || (ip.is_unspecified() && range.is_some());
            is_there && own.port() == address.port()
        })
    }
}

impl Allow {
    /// Reads an entry: `"shop.example.net"`, `"shop.example.net:8443"`, `"*.example.net"`,
    /// `"10.1.2.3:80"`, `"[fd00::1]:80"`, `"10.0.0.0/8"`. An error says what is wrong with it.
    pub fn parse(text: &str) -> Result<Allow, String> {
        if text.len() > ENTRY_BYTES_MAX {
            return Err(format!("an entry has at most {ENTRY_BYTES_MAX} bytes"));
        }
        if let Some((first, bits)) = text.split_once('/') {
            let what = net(text, first, bits)?;
            return Ok(Allow { what, port: None });
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Allow::of(ip, None));
        }
        if let Some(rest) = text.strip_prefix('[') {
            let wrong = || format!("{text:?} should be written as in \"[fd00::1]:80\"");
            let (ip, port) = rest.split_once(']').ok_or_else(wrong)?;
            let ip: Ipv6Addr = ip.parse().map_err(|_| wrong())?;
            let port = match port.strip_prefix(':') {
                Some(port) => Some(port_of(port)?),
                None if port.is_empty() => None,
                None => return Err(wrong()),
            };
            return Ok(Allow::of(ip.into(), port));
        }
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port_of(port)?)),
            None => (text, None),
        };
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Ok(Allow::of(ip, port));
        }
        let what = match host.strip_prefix("*.") {
            Some(name) => What::Below(name_of(name)?),
            None => What::Name(name_of(host)?),
        };
        Ok(Allow { what, port })
    }

    fn of(ip: IpAddr, port: Option<u16>) -> Allow {
        let first = canonical(ip);
        let bits = width(first);
        let what = What::Net { first, bits };
        Allow { what, port }
    }

    fn covers(&self, host: &str, address: SocketAddr) -> bool {
        if self.port.is_some_and(|port| port != address.port()) {
            return false;
        }
        match &self.what {
            What::Name(name) => host == name,
            What::Below(name) => host
                .strip_suffix(name.as_str())
                .is_some_and(|below| below.len() > 1 && below.ends_with('.')),
            What::Net { first, bits } => is_within(address.ip(), *first, *bits),
        }
    }
}

impl fmt::Display for Allow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Name(name) => f.write_str(name)?,
            What::Below(name) => write!(f, "*.{name}")?,
            What::Net { first, bits } if *bits < width(*first) => write!(f, "{first}/{bits}")?,
            What::Net { first, .. } if first.is_ipv6() => write!(f, "[{first}]")?,
            What::Net { first, .. } => write!(f, "{first}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

fn net(text: &str, first: &str, bits: &str) -> Result<What, String> {
    let wrong = || format!("{text:?} should be an address and its bits, as in \"10.0.0.0/8\"");
    let first: IpAddr = first.parse().map_err(|_| wrong())?;
    let bits: u8 = bits.parse().map_err(|_| wrong())?;
    if bits > width(first) {
        return Err(wrong());
    }
    if canonical(first) != first {
        return Err(format!("{text:?} should be written as IPv4"));
    }
    let start = match first {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(
            v4.to_bits() & !low_bits(32 - u32::from(bits)) as u32,
        )),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(
            v6.to_bits() & !low_bits(128 - u32::from(bits)),
        )),
    };
    match start == first {
        true => Ok(What::Net { first, bits }),
        false => Err(format!(
            "{text:?} begins at {start}: write \"{start}/{bits}\""
        )),
    }
}

/// A name as a browser asks for it: lower case, no dot at its end.
fn name_of(text: &str) -> Result<String, String> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_label = |label: &str| {
        let is_plain = |sign: char| sign.is_ascii_alphanumeric() || "-_".contains(sign);
        (1..=63).contains(&label.len()) && label.chars().all(is_plain)
    };
    if !name.split('.').all(is_label) {
        return Err(format!(
            "{text:?} should be a host, as in \"shop.example.net\" or \"*.example.net\" (a name \
             outside ASCII in its `xn--` form)"
        ));
    }
    // A browser reads such a name as an address (WHATWG URL, "ends in a number").
    let last = name.rsplit('.').next().unwrap_or_default();
    let is_number = last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x");
    match is_number {
        true => Err(format!("{text:?} should be an address of four numbers")),
        false => Ok(name),
    }
}

fn port_of(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|port| *port > 0);
    port.ok_or_else(|| format!("{text:?} should be a port from 1 to 65535"))
}

/// What `ip` is, unless it is a public address of a host. `ip` is [`canonical`].
pub fn range_of(ip: IpAddr) -> Option<Range> {
    match ip {
        IpAddr::V4(v4) => range_of_v4(v4),
        IpAddr::V6(v6) => range_of_v6(v6),
    }
}

/// After the registry of special IPv4 addresses of IANA (RFC 6890 and later).
fn range_of_v4(ip: Ipv4Addr) -> Option<Range> {
    let found = match ip.octets() {
        [169, 254, 169, 254] | [168, 63, 129, 16] | [100, 100, 100, 200] | [192, 0, 0, 192] => {
            Range::Metadata
        }
        [127, ..] => Range::Loopback,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => Range::Private,
        [169, 254, ..] => Range::LinkLocal,
        [100, 64..=127, ..] => Range::Shared,
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => Range::Documentation,
        [255, 255, 255, 255] => Range::Broadcast,
        [224..=239, ..] => Range::Multicast,
        [192, 88, 99, _] => Range::Embedded,
        [0, ..] | [192, 0, 0, _] | [198, 18..=19, ..] | [240..=255, ..] => Range::Reserved,
        _ => return None,
    };
    Some(found)
}

/// Only 2000::/3 is given to sites (RFC 4291 and IANA's registry), so the rest is refused even where
/// nobody has said yet what it is for.
fn range_of_v6(ip: Ipv6Addr) -> Option<Range> {
    let found = match ip.segments() {
        [0xFD00, 0x0EC2, 0, 0, 0, 0, 0, 0x254] => Range::Metadata,
        [0, 0, 0, 0, 0, 0, 0, 1] => Range::Loopback,
        [0, 0, 0, 0, 0, 0, _, _] => Range::Embedded,
        [0xFC00..=0xFDFF, ..] | [0xFEC0..=0xFEFF, ..] => Range::Private,
        [0xFE80..=0xFEBF, ..] => Range::LinkLocal,
        [0xFF00..=0xFFFF, ..] => Range::Multicast,
        [0x2002, ..] | [0x2001, 0, ..] => Range::Embedded,
        [0x2001, 0xDB8, ..] | [0x3FFF, 0..=0xFFF, ..] => Range::Documentation,
        [0x2001, 0..=0x1FF, ..] => Range::Reserved,
        [0x2000..=0x3FFF, ..] => return None,
        _ => Range::Reserved,
    };
    Some(found)
}

/// The address that is reached: an IPv4 address in the clothes of IPv6 without them, mapped (RFC 4291,
/// section 2.5.5.2) or translated by somebody's network (RFC 6052).
pub fn canonical(ip: IpAddr) -> IpAddr {
    let ip = ip.to_canonical();
    let IpAddr::V6(v6) = ip else {
        return ip;
    };
    match v6.segments() {
        [0x64, 0xFF9B, 0, 0, 0, 0, high, low] => {
            Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into()
        }
        _ => ip,
    }
}

fn width(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn is_within(ip: IpAddr, first: IpAddr, bits: u8) -> bool {
    let differs = match (ip, first) {
        (IpAddr::V4(ip), IpAddr::V4(first)) => u128::from(ip.to_bits() ^ first.to_bits()),
        (IpAddr::V6(ip), IpAddr::V6(first)) => ip.to_bits() ^ first.to_bits(),
        _ => return false,
    };
    let free = u32::from(width(ip) - bits);
    differs & !low_bits(free) == 0
}

fn low_bits(count: u32) -> u128 {
    u128::MAX.checked_shr(128 - count).unwrap_or(0)
}

/// What a name was asked for that always is this machine (RFC 6761, section 6.3), whatever a resolver
/// says of it.
pub fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host == "localhost" || host.ends_with(".localhost")
}

/// Where [`is_localhost`] leads, in the order in which it is tried.
pub const LOCALHOST: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// One entry: the longest name has 253 bytes (RFC 1035), and a port five digits.
pub const ENTRY_BYTES_MAX: usize = 260;

/// Every connection is held against every entry.
pub const ALLOW_MAX: usize = 256;

/// What a proxy says to a page that may not reach `host`, and what its operator may do about it.
pub fn denial(host: &str, port: u16, why: &EgressRefused) -> String {
    let remedy = match why.may_be_allowed() {
        true => format!(
            "; its operator may allow it: `[browser] egress_allow = [\"{}:{port}\"]`",
            bracketed(host)
        ),
        false => String::new(),
    };
    format!(
        "{} on port {port} is not reached from here: {why}{remedy}\n",
        bracketed(host)
    )
}

fn bracketed(host: &str) -> String {
    match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(allow: &[&str], cluster: &[&str]) -> EgressRules {
        let allow = allow.iter().map(|text| Allow::parse(text).expect("valid"));
        let cluster = cluster.iter().map(|text| text.parse().expect("valid"));
        EgressRules {
            allow: allow.collect(),
            cluster: cluster.collect(),
        }
    }

    #[test]
    fn only_public_addresses_are_public() {
        let check = |ip: &str, expected: Option<Range>| {
            let ip = canonical(ip.parse().expect("an address"));
            assert_eq!(range_of(ip), expected, "{ip}");
        };
        for ip in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "128.0.0.1",
            "172.15.255.255",
            "172.32.0.0",
            "192.0.1.0",
            "198.17.255.255",
            "198.20.0.0",
            "223.255.255.255",
            "2001:200::1",
            "2606:4700::1111",
            "3ffe::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            check(ip, None);
        }
        for (ip, range) in [
            ("127.0.0.1", Range::Loopback),
            ("127.255.255.254", Range::Loopback),
            ("::1", Range::Loopback),
            ("::ffff:127.0.0.1", Range::Loopback),
            ("64:ff9b::7f00:1", Range::Loopback),
            ("10.0.0.0", Range::Private),
            ("172.16.0.1", Range::Private),
            ("172.31.255.255", Range::Private),
            ("192.168.1.1", Range::Private),
            ("::ffff:192.168.1.1", Range::Private),
            ("64:ff9b::c0a8:101", Range::Private),
            ("fc00::1", Range::Private),
            ("fdff::1", Range::Private),
            ("fec0::1", Range::Private),
            ("169.254.0.1", Range::LinkLocal),
            ("fe80::1", Range::LinkLocal),
            ("febf::1", Range::LinkLocal),
            ("100.64.0.1", Range::Shared),
            ("100.127.255.255", Range::Shared),
            ("169.254.169.254", Range::Metadata),
            ("::ffff:169.254.169.254", Range::Metadata),
            ("64:ff9b::a9fe:a9fe", Range::Metadata),
            ("fd00:ec2::254", Range::Metadata),
            ("168.63.129.16", Range::Metadata),
            ("100.100.100.200", Range::Metadata),
            ("224.0.0.1", Range::Multicast),
            ("239.255.255.255", Range::Multicast),
            ("ff02::1", Range::Multicast),
            ("255.255.255.255", Range::Broadcast),
            ("192.0.2.1", Range::Documentation),
            ("198.51.100.1", Range::Documentation),
            ("203.0.113.1", Range::Documentation),
            ("2001:db8::1", Range::Documentation),
            ("3fff:fff::1", Range::Documentation),
            ("2002:7f00:1::1", Range::Embedded),
            ("2002:808:808::1", Range::Embedded),
            ("2001::1", Range::Embedded),
            ("::127.0.0.1", Range::Embedded),
            ("192.88.99.1", Range::Embedded),
            ("0.0.0.1", Range::Reserved),
            ("192.0.0.8", Range::Reserved),
            ("198.18.0.1", Range::Reserved),
            ("240.0.0.1", Range::Reserved),
            ("2001:2::1", Range::Reserved),
            ("64:ff9b:1::1", Range::Reserved),
            ("100::1", Range::Reserved),
            ("5f00::1", Range::Reserved),
            ("4000::1", Range::Reserved),
        ] {
            check(ip, Some(range));
        }
    }

    #[test]
    fn an_entry_opens_what_it_names_and_no_more() {
        let check = |entry: &str, host: &str, address: &str, expected: bool| {
            let judged = rules(&[entry], &[]).judge(host, address.parse().expect("valid"));
            assert_eq!(judged.is_ok(), expected, "{entry}: {host} at {address}");
        };
        for (entry, host, address, expected) in [
            ("shop.localhost", "shop.localhost", "127.0.0.1:81", true),
            ("shop.localhost", "shop.localhost.", "127.0.0.1:81", true),
            ("Shop.Localhost.", "shop.localhost", "127.0.0.1:81", true),
            ("shop.localhost", "a.shop.localhost", "127.0.0.1:81", false),
            ("shop.localhost", "xshop.localhost", "127.0.0.1:81", false),
            ("shop.localhost:81", "shop.localhost", "127.0.0.1:81", true),
            ("shop.localhost:81", "shop.localhost", "127.0.0.1:82", false),
            ("*.lan", "a.lan", "10.0.0.1:1", true),
            ("*.lan", "a.b.lan", "10.0.0.1:1", true),
            ("*.lan", "lan", "10.0.0.1:1", false),
            ("*.lan", ".lan", "10.0.0.1:1", false),
            ("*.lan", "alan", "10.0.0.1:1", false),
            ("*.lan:443", "a.lan", "10.0.0.1:80", false),
            ("127.0.0.1:81", "127.0.0.1", "127.0.0.1:81", true),
            ("127.0.0.1:81", "any.name", "127.0.0.1:81", true),
            ("127.0.0.1:81", "any.name", "[::ffff:127.0.0.1]:81", true),
            ("127.0.0.1:81", "127.0.0.1", "127.0.0.1:82", false),
            ("[::1]:81", "::1", "[::1]:81", true),
            ("[::ffff:127.0.0.1]", "127.0.0.1", "127.0.0.1:81", true),
            ("::1", "::1", "[::1]:9", true),
            ("10.0.0.0/8", "x", "10.255.0.1:1", true),
            ("10.0.0.0/8", "x", "11.0.0.1:1", true), // public
            ("10.0.0.0/8", "x", "172.16.0.1:1", false),
            ("10.0.0.0/8", "x", "[fd00::1]:1", false),
            ("fd00::/8", "x", "[fd12::1]:1", true),
            ("fd00::/8", "x", "[fc00::1]:1", false),
            ("0.0.0.0/0", "x", "169.254.169.254:80", true),
            ("0.0.0.0/0", "x", "0.0.0.0:80", false),
            ("::/0", "x", "[::]:80", false),
            ("::/0", "x", "[fe80::1]:80", true),
        ] {
            check(entry, host, address, expected);
        }
    }

    #[test]
    fn an_entry_reads_back_as_it_was_written_and_a_wrong_one_is_refused() {
        for text in [
            "shop.example.net",
            "shop.example.net:8443",
            "*.example.net",
            "*.example.net:443",
            "10.1.2.3",
            "10.1.2.3:80",
            "[fd00::1]",
            "[fd00::1]:80",
            "10.0.0.0/8",
            "fd00::/8",
            "0.0.0.0/0",
            "xn--bcher-kva.example",
            "under_score.example",
        ] {
            let read = Allow::parse(text).expect("valid");
            assert_eq!(format!("{read}"), text);
        }
        for text in [
            "",
            ":80",
            "a:",
            "a:0",
            "a:65536",
            "a:80:80",
            "*",
            "*.",
            "a.*.b",
            "http://a",
            "a/b",
            "a b",
            "bücher.example",
            "10.0.0.1/8",
            "10.0.0.0/33",
            "fd00::/129",
            "::ffff:10.0.0.0/104",
            "[::1",
            "[::1]x",
            "[10.0.0.1]",
            "127.1",
            "2130706433",
            "0x7f.1",
            "a..b",
            "a.b:-1",
        ] {
            assert!(Allow::parse(text).is_err(), "{text:?}");
        }
        assert!(Allow::parse(&"a".repeat(ENTRY_BYTES_MAX + 1)).is_err());
        let hint = Allow::parse("10.0.0.1/8").expect_err("has bits beyond");
        assert!(hint.contains("\"10.0.0.0/8\""), "{hint}");
    }

    #[test]
    fn no_entry_opens_what_belongs_to_the_cluster() {
        let all = rules(
            &["0.0.0.0/0", "::/0", "*.net"],
            &["127.0.0.1:8080", "198.41.0.4:7600", "0.0.0.0:7700"],
        );
        let judge = |address: &str| all.judge("a.net", address.parse().expect("valid"));
        for address in [
            "127.0.0.1:8080",
            "[::ffff:127.0.0.1]:8080",
            "[64:ff9b::c629:4]:7600",
            "198.41.0.4:7600",
            "127.0.0.1:7700",
            "[::1]:7700",
            "10.0.0.1:7700",
        ] {
            let refused = judge(address).expect_err(address);
            assert!(matches!(refused, EgressRefused::Cluster(_)), "{address}");
            assert!(!refused.may_be_allowed());
        }
        for address in ["127.0.0.1:8081", "198.41.0.4:80", "8.8.8.8:7700"] {
            assert_eq!(judge(address), Ok(()), "{address}");
        }
        // Without an entry the other ports of a machine of the cluster are closed, public or not.
        let none = rules(&[], &["198.41.0.4:7600"]);
        let judged = none.judge("a.net", "198.41.0.4:80".parse().expect("valid"));
        let machine = EgressRefused::Machine("198.41.0.4".parse().expect("valid"));
        assert_eq!(judged, Err(machine));
    }

    #[test]
    fn a_denial_says_what_to_configure_where_that_helps() {
        let refused = rules(&[], &["127.0.0.1:8080"]);
        let why = |address: &str| {
            let address: SocketAddr = address.parse().expect("valid");
            let refused = refused.judge("x", address).expect_err("refused");
            denial("::1", address.port(), &refused)
        };
        assert!(why("[::1]:80").contains("egress_allow = [\"[::1]:80\"]"));
        assert!(!why("127.0.0.1:8080").contains("egress_allow = "));
    }
}
