//! Free ports on loopback.
//!
//! Owns: finding pairs of UDP ports (a node's heart listens on the port after its main one) and TCP
//! ports. A port may be taken between the finding and the use; whoever starts a node sees that at once.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};

/// Given away already by this process.
static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A UDP port with a free one after it.
pub fn udp_pair() -> Result<u16> {
    for _ in 0..TRIES {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no free UDP port")?;
        let port = socket.local_addr()?.port();
        let Some(next) = port.checked_add(1) else {
            continue;
        };
        let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, next)).is_ok();
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        if free && !given.contains(&port) && !given.contains(&next) {
            given.extend([port, next]);
            return Ok(port);
        }
    }
    bail!("no two free UDP ports beside each other in {TRIES} tries")
}

/// A TCP port.
pub fn tcp() -> Result<u16> {
    for _ in 0..TRIES {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free TCP port")?;
        let port = listener.local_addr()?.port();
        let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
        if given.insert(port) {
            return Ok(port);
        }
    }
    bail!("no free TCP port in {TRIES} tries")
}

/// Ports that are tried before giving up.
const TRIES: usize = 100;
