//! The code of TUTORIAL.md, compiled and run; the last test compares the two word for word.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use bytes::Bytes;
use understudy_supervision::{
    Checkpoint, Child, ChildError, Context, Handled, Kind, Request, StartError,
};

/// Starts polls.
struct Poll;

/// One poll: the votes each name has.
struct Votes(BTreeMap<String, u64>);

impl Kind for Poll {
    type Child = Votes;

    async fn start(&self, _: Context, checkpoint: Checkpoint) -> Result<Votes, StartError> {
        let mut votes = match &checkpoint.base {
            Some(base) => Votes::read(base)?,
            None => Votes(BTreeMap::new()),
        };
        for step in &checkpoint.steps {
            votes.count(text(step)?);
        }
        Ok(votes)
    }
}

impl Child for Votes {
    async fn handle(&mut self, request: Request) -> Result<Handled, ChildError> {
        let Ok(body) = std::str::from_utf8(&request.body) else {
            return Ok(Handled::read("error: a request is text"));
        };
        let handled = match body.split_once(' ') {
            Some(("vote", name)) if is_name(name) => {
                self.count(name);
                Handled::step(format!("{} for {name}", self.0[name]), name.to_owned())
            }
            None if body == "result" => Handled::read(self.lines()),
            _ => Handled::read("error: a poll understands `vote NAME` and `result`"),
        };
        Ok(handled)
    }

    async fn snapshot(&mut self) -> Result<Bytes, ChildError> {
        Ok(self.lines().into())
    }
}

impl Votes {
    fn count(&mut self, name: &str) {
        *self.0.entry(name.to_owned()).or_default() += 1;
    }

    /// `3 ada` for each name: the answer to `result`, and the snapshot.
    fn lines(&self) -> String {
        let line = |(name, votes): (&String, &u64)| format!("{votes} {name}\n");
        self.0.iter().map(line).collect()
    }

    fn read(base: &Bytes) -> Result<Votes, StartError> {
        let wrong = || StartError::BadCheckpoint(format!("{base:?} holds no votes"));
        let mut votes = BTreeMap::new();
        for line in text(base)?.lines() {
            let (count, name) = line.split_once(' ').ok_or_else(wrong)?;
            votes.insert(name.to_owned(), count.parse().map_err(|_| wrong())?);
        }
        Ok(Votes(votes))
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && !name.contains(char::is_control)
}

fn text(bytes: &Bytes) -> Result<&str, StartError> {
    std::str::from_utf8(bytes).map_err(|error| StartError::BadCheckpoint(error.to_string()))
}

#[tokio::test]
async fn a_poll_comes_back_as_it_was() {
    let requests: [&[u8]; 4] = [b"vote ada", b"vote grace", b"vote ada", b"result"];
    let answers = understudy_supervision::testing::comes_back(&Poll, &requests)
        .await
        .unwrap();
    assert_eq!(answers[3], "2 ada\n1 grace\n");
}

#[tokio::test]
async fn a_vote_for_nobody_is_refused_and_leaves_no_step() {
    let requests: [&[u8]; 4] = [b"vote ", b"vote", b"\xff", b"result"];
    let answers = understudy_supervision::testing::comes_back(&Poll, &requests)
        .await
        .unwrap();
    assert!(
        answers[..3]
            .iter()
            .all(|answer| answer.starts_with(b"error: "))
    );
    assert_eq!(answers[3], "");
}

#[tokio::test]
async fn a_driver_runs_it() {
    use tokio::sync::mpsc;
    use understudy_protocol::id::ChildId;
    use understudy_supervision::driver::{Driver, DriverEvent, Kinds};

    let (sender, mut events) = mpsc::channel(16);
    let mut driver = Driver::new(Kinds::new().with("poll", Poll), sender);
    let child = ChildId::parse("acme/poll/best-language").unwrap();
    driver.start(
        child.clone(),
        None,
        vec![Bytes::from_static(b"ada").into()],
        None,
    );
    assert_eq!(events.recv().await, Some(DriverEvent::Started(child)));
}

#[test]
fn the_tutorial_shows_this_code() {
    let shown = include_str!("../TUTORIAL.md");
    let here = include_str!("tutorial.rs");
    let mut blocks = 0;
    for block in shown.split("```rust\n").skip(1) {
        let code = block.split("```").next().unwrap();
        assert!(here.contains(code), "not in tests/tutorial.rs:\n{code}");
        blocks += 1;
    }
    assert_eq!(blocks, 6, "a block of TUTORIAL.md was lost");
}
