//! Server-sent events, read from chunks (WHATWG HTML, section 9.2.6).
//!
//! Owns: the cut between two events. Never keeps more than one event, and gives up on one that is too
//! long to be any of ours.

/// Puts chunks together until an event is whole.
#[derive(Default)]
pub(super) struct Events {
    bytes: Vec<u8>,
}

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) id: Option<String>,
    pub(super) event: String,
    pub(super) data: String,
}

/// An event is longer than any of ours; the rest of the stream means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Events {
    /// Adds what has come.
    pub(super) fn push(&mut self, chunk: &[u8]) -> Result<(), TooLong> {
        if self.bytes.len() + chunk.len() > EVENT_BYTES_MAX {
            return Err(TooLong);
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// The next whole event. Comments keep a connection alive and are none.
    pub(super) fn next(&mut self) -> Option<Sent> {
        loop {
            let end = self.bytes.windows(2).position(|two| two == b"\n\n")?;
            let rest = self.bytes.split_off(end + 2);
            let whole = std::mem::replace(&mut self.bytes, rest);
            let sent = read(&String::from_utf8_lossy(&whole));
            if sent != Sent::default() {
                return Some(sent);
            }
        }
    }
}

fn read(text: &str) -> Sent {
    let mut sent = Sent::default();
    for line in text.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => sent.id = Some(value.to_owned()),
            "event" => value.clone_into(&mut sent.event),
            "data" => {
                if !sent.data.is_empty() {
                    sent.data.push('\n');
                }
                sent.data.push_str(value);
            }
            _ => {}
        }
    }
    sent
}

/// A chunk of many events and the part of one before it.
const EVENT_BYTES_MAX: usize = 4 * 1024 * 1024;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn events_are_whole_however_they_are_cut() {
        let text = b": hello\n\nid: a.1\nevent: event\ndata: {\"x\":1}\n\nevent: missed\ndata: {}\n\nid: a.2";
        for size in 1..text.len() {
            let mut events = Events::default();
            let mut read = Vec::new();
            for chunk in text.chunks(size) {
                events.push(chunk).unwrap();
                read.extend(std::iter::from_fn(|| events.next()));
            }
            assert_eq!(read.len(), 2, "in chunks of {size}");
            assert_eq!(read[0].id.as_deref(), Some("a.1"));
            assert_eq!(read[0].data, "{\"x\":1}");
            assert_eq!((&*read[1].event, &read[1].id), ("missed", &None));
        }
    }

    #[test]
    fn a_stream_without_an_end_is_given_up() {
        let mut events = Events::default();
        let chunk = vec![b'x'; EVENT_BYTES_MAX];
        assert_eq!(events.push(&chunk), Ok(()));
        assert_eq!(events.push(b"x"), Err(TooLong));
    }
}
