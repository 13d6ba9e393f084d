//! Time that is passed in, never read.
//!
//! Owns: [`Time`], an instant of one node's own clock, and [`ClusterTime`], the directory's clock.
//! The two never mix: a `Time` of one node says nothing to another.

use core::ops::{Add, Sub};
use core::time::Duration;

use minicbor::{Decode, Encode};

/// An instant of one node's `CLOCK_BOOTTIME` (it counts while the machine is suspended, rule L2),
/// in nanoseconds since an origin that only this node knows. Never sent: only this node's own event
/// log holds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The origin.
    pub const ZERO: Time = Time(0);
    /// Later than everything that can happen.
    pub const MAX: Time = Time(u64::MAX);

    /// The instant `nanos` nanoseconds after the origin.
    pub const fn from_nanos(nanos: u64) -> Time {
        Time(nanos)
    }

    /// The instant `millis` milliseconds after the origin.
    pub const fn from_millis(millis: u64) -> Time {
        Time(millis.saturating_mul(1_000_000))
    }

    /// Nanoseconds since the origin.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Whole milliseconds since the origin; what is left over is dropped.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// How long ago `earlier` was; zero when it is not earlier.
    pub const fn since(self, earlier: Time) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;

    fn add(self, span: Duration) -> Time {
        Time(self.0.saturating_add(nanos(span)))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;

    fn sub(self, span: Duration) -> Time {
        Time(self.0.saturating_sub(nanos(span)))
    }
}

/// Encodes a [`Time`] for the event log of the node whose time it is, for `#[cbor(with = "…")]`. There
/// is no `Encode` on the type itself, so that none gets into a message.
pub(crate) mod as_nanos {
    use minicbor::decode::{Decoder, Error as DecodeError};
    use minicbor::encode::{Encoder, Error as EncodeError, Write};

    use super::Time;

    pub(crate) fn encode<C, W: Write>(
        time: &Time,
        e: &mut Encoder<W>,
        _: &mut C,
    ) -> Result<(), EncodeError<W::Error>> {
        e.u64(time.as_nanos())?.ok()
    }

    pub(crate) fn decode<C>(d: &mut Decoder<'_>, _: &mut C) -> Result<Time, DecodeError> {
        Ok(Time::from_nanos(d.u64()?))
    }
}

/// The directory's clock, in milliseconds: every command carries it, it never goes backwards, and a
/// new leader goes on from the last applied value. So a window such as a restart intensity means the
/// same on every node and survives the leader that opened it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
#[cbor(transparent)]
pub struct ClusterTime(#[n(0)] u64);

impl ClusterTime {
    /// When the cluster was formed.
    pub const ZERO: ClusterTime = ClusterTime(0);

    /// `millis` milliseconds after the cluster was formed.
    pub const fn from_millis(millis: u64) -> ClusterTime {
        ClusterTime(millis)
    }

    /// Milliseconds since the cluster was formed.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero when it is not earlier.
    pub const fn since(self, earlier: ClusterTime) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for ClusterTime {
    type Output = ClusterTime;

    fn add(self, span: Duration) -> ClusterTime {
        ClusterTime(
            self.0
                .saturating_add(span.as_millis().min(u128::from(u64::MAX)) as u64),
        )
    }
}

fn nanos(span: Duration) -> u64 {
    span.as_nanos().min(u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_instant_and_no_span_overflow() {
        assert_eq!(Time::MAX + Duration::MAX, Time::MAX);
        assert_eq!(Time::ZERO - Duration::MAX, Time::ZERO);
        assert_eq!(Time::from_millis(u64::MAX), Time::MAX);
        assert_eq!(Time::ZERO.since(Time::MAX), Duration::ZERO);

        let last = ClusterTime::from_millis(u64::MAX);
        assert_eq!(last + Duration::MAX, last);
        assert_eq!(ClusterTime::ZERO + Duration::MAX, last);
        assert_eq!(ClusterTime::ZERO.since(last), Duration::ZERO);
        assert_eq!(last.since(ClusterTime::ZERO).as_millis(), u64::MAX.into());
    }
}
