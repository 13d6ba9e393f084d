//! The kinds that a node knows, by name.
//!
//! Owns: the list of kinds, and the step from [`Kind`] and [`Child`], which are pleasant to write, to
//! objects of any kind. Never changes once a driver has it.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use understudy_protocol::supervision::RestartType;

use crate::child::{Checkpoint, Child, ChildError, Context, Handled, Kind, Request, StartError};

/// The kinds that a node knows. A clone shares them.
#[derive(Clone, Default)]
pub struct Kinds {
    by_name: BTreeMap<String, Arc<dyn AnyKind>>,
}

/// What the node says of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct About {
    /// See [`Kind::needs_own_unit`].
    pub needs_own_unit: bool,
    /// See [`Kind::restart`].
    pub restart: RestartType,
}

impl Kinds {
    /// None yet.
    pub fn new() -> Kinds {
        Kinds::default()
    }

    /// These and one more, whose children have `name` as the second name of their ids.
    ///
    /// # Panics
    /// When the name is taken or cannot stand in a child's id (empty, or with a slash, a space or a
    /// control character): the program that lists its kinds is wrong.
    #[must_use]
    pub fn with(mut self, name: &str, kind: impl Kind) -> Kinds {
        let fits = !name.is_empty()
            && !name.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
        assert!(fits, "{name:?} cannot stand in a child's id");
        let before = self.by_name.insert(name.to_owned(), Arc::new(kind));
        assert!(before.is_none(), "the kind {name:?} is listed twice");
        self
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// What is said of the kind, if it is known.
    pub fn about(&self, name: &str) -> Option<About> {
        self.by_name.get(name).map(|kind| kind.about())
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<dyn AnyKind>> {
        self.by_name.get(name).cloned()
    }
}

impl std::fmt::Debug for Kinds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// A future as an object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A [`Kind`] as an object.
pub(crate) trait AnyKind: Send + Sync {
    fn start(
        self: Arc<Self>,
        context: Context,
        checkpoint: Checkpoint,
    ) -> BoxFuture<'static, Result<Box<dyn AnyChild>, StartError>>;
    fn about(&self) -> About;
}

/// A [`Child`] as an object. No code of the child runs before the first poll, so that whoever polls
/// catches whatever it panics with.
pub(crate) trait AnyChild: Send {
    fn handle(&mut self, request: Request) -> BoxFuture<'_, Result<Handled, ChildError>>;
    fn snapshot(&mut self) -> BoxFuture<'_, Result<Bytes, ChildError>>;
    fn stop(&mut self) -> BoxFuture<'_, ()>;
}

impl<K: Kind> AnyKind for K {
    fn start(
        self: Arc<Self>,
        context: Context,
        checkpoint: Checkpoint,
    ) -> BoxFuture<'static, Result<Box<dyn AnyChild>, StartError>> {
        Box::pin(async move {
            let child = Kind::start(&*self, context, checkpoint).await?;
            Ok(Box::new(child) as Box<dyn AnyChild>)
        })
    }

    fn about(&self) -> About {
        About {
            needs_own_unit: self.needs_own_unit(),
            restart: self.restart(),
        }
    }
}

impl<C: Child> AnyChild for C {
    fn handle(&mut self, request: Request) -> BoxFuture<'_, Result<Handled, ChildError>> {
        Box::pin(async move { Child::handle(self, request).await })
    }

    fn snapshot(&mut self) -> BoxFuture<'_, Result<Bytes, ChildError>> {
        Box::pin(async move { Child::snapshot(self).await })
    }

    fn stop(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move { Child::stop(self).await })
    }
}
