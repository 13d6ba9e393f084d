//! Where a child's long bytes are kept until a record names them: [`Values`].
//!
//! Owns: what the driver asks of whoever keeps pieces, and a keeper in memory, for tests. Never
//! decides what is long: `understudy-protocol` does (`wire::content`).
//!
//! A kind does not notice. What it hands out is cut here before the node hears of it, and put together
//! again before the next start sees it.

use std::collections::HashMap;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use understudy_protocol::wire::content::{Content, INLINE_MAX, Parts, PieceName, Pieces};

pub use crate::kinds::BoxFuture;

/// Keeps the pieces of one node's children.
pub trait Values: Send + Sync + 'static {
    /// Cuts the value and keeps its pieces: they are flushed in the node's own store when this is
    /// `Ok`. They may be removed again some minutes later, unless a record names them by then.
    fn keep(&self, value: Bytes) -> BoxFuture<'_, Result<Pieces, KeepError>>;

    /// Keeps what was cut already, as [`Values::keep`] does.
    fn keep_parts(&self, parts: Parts) -> BoxFuture<'_, Result<(), KeepError>>;

    /// The value of these pieces, from the node's own store or from other nodes'.
    fn fetch(&self, pieces: Pieces) -> BoxFuture<'_, Result<Bytes, FetchError>>;
}

/// Why a value was not kept. No record may name its pieces.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeepError {
    /// It is above
    /// [`VALUE_BYTES_MAX`](understudy_protocol::wire::content::VALUE_BYTES_MAX). It never will be.
    #[error(transparent)]
    TooLong(#[from] understudy_protocol::wire::content::TooLong),
    /// The disk would not take it, and may another time.
    #[error("it was not written: {0}")]
    Refused(String),
}

/// Why a value was not had. Nothing has changed; another time it may be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Nobody who could be asked has all pieces, whole.
    #[error("no node that answers has {missing} of its pieces, among them {first}")]
    Missing {
        /// How many.
        missing: usize,
        /// One of them.
        first: PieceName,
    },
    /// What is kept under the names is not what was cut.
    #[error("its pieces do not fit: {0}")]
    Broken(#[from] understudy_protocol::wire::content::NotTheValue),
    /// The disk or the system would not.
    #[error("it was not read: {0}")]
    Refused(String),
}

/// What stands in a record for these bytes: long ones are kept as pieces first. Longer than
/// `inline_max` bytes is long.
pub(crate) async fn content_of(
    values: &dyn Values,
    bytes: Bytes,
    inline_max: usize,
) -> Result<Content, KeepError> {
    if bytes.len() <= inline_max.min(INLINE_MAX) {
        return Ok(Content::Inline(bytes));
    }
    values.keep(bytes).await.map(Content::Pieces)
}

/// The bytes that a record says.
pub(crate) async fn bytes_of(values: &dyn Values, content: Content) -> Result<Bytes, FetchError> {
    match content {
        Content::Inline(bytes) => Ok(bytes),
        Content::Pieces(pieces) => values.fetch(pieces).await,
    }
}

/// Pieces in memory, for tests and benches. Every clone is the same, so that a second driver may go on
/// with what a first one kept.
#[derive(Clone, Debug, Default)]
pub struct MemoryValues {
    kept: Arc<Mutex<HashMap<PieceName, Bytes>>>,
    refuses: Arc<Mutex<Option<String>>>,
}

impl MemoryValues {
    /// Nothing is kept from now on, for this reason; `None`: everything is again.
    pub fn refuse(&self, reason: Option<String>) {
        *lock(&self.refuses) = reason;
    }

    /// Forgets every piece.
    pub fn forget(&self) {
        lock(&self.kept).clear();
    }

    /// How many pieces there are.
    pub fn len(&self) -> usize {
        lock(&self.kept).len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn join(&self, pieces: &Pieces) -> Result<Bytes, FetchError> {
        let kept = lock(&self.kept);
        let missing = |first| FetchError::Missing { missing: 1, first };
        let list = match pieces.list() {
            Some(name) => Some(kept.get(&name).ok_or(missing(name))?),
            None => None,
        };
        let names = pieces.names(list.map(|list| &list[..]))?;
        let piece = |name| kept.get(&name).map(|piece| &piece[..]);
        let lost = |name: &&PieceName| **name != PieceName::ZEROS && !kept.contains_key(*name);
        if let Some(first) = names.iter().find(lost) {
            let missing = names.iter().filter(lost).count();
            let first = *first;
            return Err(FetchError::Missing { missing, first });
        }
        Ok(pieces.join(&names, piece)?)
    }
}

impl Values for MemoryValues {
    fn keep(&self, value: Bytes) -> BoxFuture<'_, Result<Pieces, KeepError>> {
        let refused = lock(&self.refuses).clone();
        let kept = match refused {
            Some(reason) => Err(KeepError::Refused(reason)),
            None => Pieces::cut(&value).map_err(KeepError::from).map(|cut| {
                lock(&self.kept).extend(cut.parts);
                cut.pieces
            }),
        };
        Box::pin(ready(kept))
    }

    fn keep_parts(&self, parts: Parts) -> BoxFuture<'_, Result<(), KeepError>> {
        let refused = lock(&self.refuses).clone();
        let kept = match refused {
            Some(reason) => Err(KeepError::Refused(reason)),
            None => {
                lock(&self.kept).extend(parts);
                Ok(())
            }
        };
        Box::pin(ready(kept))
    }

    fn fetch(&self, pieces: Pieces) -> BoxFuture<'_, Result<Bytes, FetchError>> {
        Box::pin(ready(self.join(&pieces)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds the lock; a test that did has failed already.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
