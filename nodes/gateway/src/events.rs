//! What happens, as server-sent events (WHATWG HTML, section 9.2).
//!
//! Owns: the cursor and the stream. Never buffers for a slow follower: the history does, and says how
//! many events it had to leave out.
//!
//! Each start of a node counts its own events, so a cursor names the start too. A follower that comes
//! with a cursor of another start, or of another node, hears all that is kept.

use std::convert::Infallible;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt as _, Stream, stream};
use tokio::sync::{OwnedSemaphorePermit, watch};

use understudy_control::events::{ClusterEvent, EventStream, Followed};
use understudy_control::handle::{Handle, View};
use understudy_protocol::id::IncarnationId;

use crate::api;
use crate::problem::{Kind, Problem};
use crate::show::node_name;

/// Where to go on, as a number of this start; none begins with what happens next.
pub fn after(cursor: Option<&str>, incarnation: IncarnationId) -> Result<Option<u64>, Problem> {
    let Some(cursor) = cursor else {
        return Ok(None);
    };
    let (start, number) = match cursor.split_once('.') {
        Some((start, number)) => (u64::from_str_radix(start, 16).ok(), number),
        None => (Some(incarnation.0), cursor),
    };
    match (start, number.parse::<u64>()) {
        (Some(start), Ok(number)) if start == incarnation.0 => Ok(Some(number)),
        (Some(_), Ok(_)) => Ok(Some(0)),
        _ => Err(
            Problem::new(Kind::Invalid, "this is no id of an event").hint(
                "send the last id that you have seen, as it was written, or 0 for all that is kept",
            ),
        ),
    }
}

/// The id under which an event is sent.
pub fn cursor(incarnation: IncarnationId, number: u64) -> String {
    format!("{:x}.{number}", incarnation.0)
}

/// One event.
pub fn shown(view: &View, event: &ClusterEvent) -> api::Event {
    api::Event {
        id: cursor(view.incarnation, event.id),
        time: rfc3339(event.at),
        node: event.node.map(|node| node_name(&view.directory, node)),
        unit: event.unit.map(|unit| unit.to_string()),
        epoch: event.epoch.map(|epoch| epoch.0),
        kind: event.kind.to_owned(),
        text: event.text.clone(),
    }
}

/// The answer that goes on for as long as someone listens, or until what is kept has been sent.
pub(crate) fn respond(
    handle: Handle,
    after: Option<u64>,
    follow: bool,
    stop: watch::Receiver<bool>,
    place: OwnedSemaphorePermit,
) -> Response {
    let following = Following {
        events: handle.events(after),
        handle,
        follow,
        stop,
        _place: place,
    };
    let sent = Sse::new(events(following));
    sent.keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
        .into_response()
}

struct Following {
    events: EventStream,
    handle: Handle,
    follow: bool,
    stop: watch::Receiver<bool>,
    /// Given back when the follower leaves.
    _place: OwnedSemaphorePermit,
}

fn events(following: Following) -> impl Stream<Item = Result<Event, Infallible>> {
    stream::unfold(following, |mut following| async move {
        let next = if following.follow {
            tokio::select! {
                next = following.events.next() => next?,
                _ = following.stop.wait_for(|stopping| *stopping) => return None,
            }
        } else {
            following.events.next().now_or_never().flatten()?
        };
        let view = following.handle.view();
        let event = match next {
            Followed::Event(event) => {
                let shown = shown(&view, &event);
                let text = serde_json::to_string(&shown).unwrap_or_default();
                Event::default().id(shown.id).event(EVENT).data(text)
            }
            Followed::Missed(count) => Event::default()
                .event(MISSED)
                .data(format!("{{\"missed\":{count}}}")),
        };
        Some((Ok(event), following))
    })
}

/// A time as RFC 3339 writes it, in UTC, with milliseconds. The calendar is that of Howard Hinnant's
/// `civil_from_days` (<https://howardhinnant.github.io/date_algorithms.html>).
pub fn rfc3339(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01: the leap day is the last of its year.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3_600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The `event` of everything that happened.
pub const EVENT: &str = "event";

/// The `event` of a gap.
pub const MISSED: &str = "missed";

/// A proxy closes a silent connection after a minute; so does a follower that wants to know.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_of_another_start_begins_with_all_that_is_kept() {
        let start = IncarnationId(0xabc);
        for (text, expected) in [
            (None, Some(None)),
            (Some(cursor(start, 7)), Some(Some(7))),
            (Some(cursor(IncarnationId(0xabd), 7)), Some(Some(0))),
            (Some("7".to_owned()), Some(Some(7))),
            (Some("0".to_owned()), Some(Some(0))),
            (Some(String::new()), None),
            (Some("abc.".to_owned()), None),
            (Some("xyz.1".to_owned()), None),
            (Some("-1".to_owned()), None),
            (Some("99999999999999999999".to_owned()), None),
        ] {
            assert_eq!(after(text.as_deref(), start).ok(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_time_is_written_in_utc_with_milliseconds() {
        for (millis, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_709_164_800_001, "2024-02-29T00:00:00.001Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59.000Z"),
            (4_102_444_800_000, "2100-01-01T00:00:00.000Z"),
        ] {
            let at = UNIX_EPOCH + Duration::from_millis(millis);
            assert_eq!(rfc3339(at), expected);
        }
    }
}
