//! What went wrong at a node's edge, counted.
//!
//! Owns: the counters, which are also metrics (`understudy_transport_…_total`). Never resets one.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What was refused or dropped since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Handshakes that failed at TLS: a foreign CA, an expired certificate, another protocol.
    pub handshakes_refused: u64,
    /// Peers whose certificate names no node of this cluster, or not the one that was dialled.
    pub identities_refused: u64,
    /// Greetings that were malformed, or named another node than the certificate.
    pub greetings_refused: u64,
    /// Frames of a type that this version does not know, dropped one by one.
    pub frames_dropped: u64,
    /// Lanes that were reset, because where their next frame begins was unknown.
    pub lanes_reset: u64,
    /// Requests of peers that were refused unserved: too long, malformed, or too many at once.
    pub requests_refused: u64,
    /// Datagrams that were no heart message, or of which nobody took notice in time.
    pub datagrams_dropped: u64,
    /// Plain datagrams above [`PLAIN_PER_SECOND_MAX`](crate::heart::PLAIN_PER_SECOND_MAX).
    pub datagrams_limited: u64,
}

/// One of [`Counted`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Count {
    Handshake,
    Identity,
    Greeting,
    Frame,
    Lane,
    Request,
    Datagram,
    Limited,
}

#[derive(Debug)]
pub(crate) struct Counters {
    counts: [AtomicU64; NAMES.len()],
    lines: Allowance,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            counts: Default::default(),
            lines: Allowance::new(LINES_PER_SECOND_MAX),
        }
    }
}

impl Counters {
    pub(crate) fn add(&self, count: Count) {
        self.counts[count as usize].fetch_add(1, Ordering::Relaxed);
        metrics::counter!(NAMES[count as usize]).increment(1);
    }

    /// Whether a refusal may write a line: strangers fill no disk. Every one is counted.
    pub(crate) fn may_log(&self) -> bool {
        self.lines.take()
    }

    pub(crate) fn counted(&self) -> Counted {
        let of = |count: Count| self.counts[count as usize].load(Ordering::Relaxed);
        Counted {
            handshakes_refused: of(Count::Handshake),
            identities_refused: of(Count::Identity),
            greetings_refused: of(Count::Greeting),
            frames_dropped: of(Count::Frame),
            lanes_reset: of(Count::Lane),
            requests_refused: of(Count::Request),
            datagrams_dropped: of(Count::Datagram),
            datagrams_limited: of(Count::Limited),
        }
    }
}

/// So many a second, and no more.
#[derive(Debug)]
pub(crate) struct Allowance {
    per_second: u32,
    left: Mutex<(u32, Instant)>,
}

impl Allowance {
    pub(crate) fn new(per_second: u32) -> Allowance {
        Allowance {
            per_second,
            left: Mutex::new((per_second, Instant::now())),
        }
    }

    /// Takes one, if one is left in this second.
    pub(crate) fn take(&self) -> bool {
        let mut left = self.left.lock().expect("nothing panics while it is held");
        if left.1.elapsed() >= Duration::from_secs(1) {
            *left = (self.per_second, Instant::now());
        }
        let is_left = left.0 > 0;
        left.0 = left.0.saturating_sub(1);
        is_left
    }
}

/// Lines about refusals: enough to see what is wrong, too few to hide anything else.
const LINES_PER_SECOND_MAX: u32 = 10;

/// In the order of [`Count`].
const NAMES: [&str; 8] = [
    "understudy_transport_handshakes_refused_total",
    "understudy_transport_identities_refused_total",
    "understudy_transport_greetings_refused_total",
    "understudy_transport_frames_dropped_total",
    "understudy_transport_lanes_reset_total",
    "understudy_transport_requests_refused_total",
    "understudy_transport_datagrams_dropped_total",
    "understudy_transport_datagrams_limited_total",
];
