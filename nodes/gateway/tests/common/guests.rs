//! Modules and sandboxes without a cluster: the real kinds, a child each, whose records nobody keeps.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{Mutex, oneshot};

use understudy_control::handle::{Answered, CallError};
use understudy_control::listing::{Children as Listing, ChildrenOf, Listed};
use understudy_gateway::{FunctionAsk, RunFunctions};
use understudy_protocol::id::{ChildId, IncarnationId, NodeId, Seq};
use understudy_protocol::wire::envelope::CallKey;
use understudy_sandbox::module::{self, Module, ModuleError, ModuleId, ModuleSource, Modules};
use understudy_sandbox::pool::Functions;
use understudy_sandbox::threads::GuestThreads;
use understudy_sandbox::{Engine, Library, Limits, Policy, Sandbox};
use understudy_supervision::{Checkpoint, Child as _, Context, Handled, Kind as _, Request};

/// Every child that was called.
#[derive(Clone)]
pub(crate) struct Guests {
    library: Library<Pulled>,
    children: Children,
}

type Children = Arc<Mutex<BTreeMap<ChildId, Arc<Mutex<Kept>>>>>;

enum Guest {
    Module(<Modules as understudy_supervision::Kind>::Child),
    Sandbox(<Sandbox<Pulled> as understudy_supervision::Kind>::Child),
}

pub(crate) struct Kept {
    guest: Guest,
    seq: Seq,
}

impl Kept {
    async fn handle(&mut self, body: Bytes) -> Bytes {
        let request = request(body);
        let handled: Handled = match &mut self.guest {
            Guest::Module(module) => module.handle(request).await.unwrap(),
            Guest::Sandbox(sandbox) => sandbox.handle(request).await.unwrap(),
        };
        if handled.effect.is_some() {
            self.seq = self.seq.next();
        }
        handled.answer
    }
}

fn request(body: Bytes) -> Request {
    let key = CallKey::Internal {
        gateway: IncarnationId(1),
        number: 1,
    };
    Request::new(key, body)
}

/// Modules as their children have them.
#[derive(Clone)]
pub(crate) struct Pulled(Children);

impl ModuleSource for Pulled {
    async fn fetch(&self, tenant: &str, id: &ModuleId) -> Result<Module, ModuleError> {
        let child = ChildId::parse(&format!("{tenant}/module/{id}")).unwrap();
        let none = || ModuleError::NotFound(id.to_string());
        let kept = self.0.lock().await.get(&child).cloned().ok_or_else(none)?;
        let pulled = module::pull(|body| async {
            let Guest::Module(module) = &mut kept.lock().await.guest else {
                panic!("{child} is no module");
            };
            let handled = module.handle(request(body)).await.unwrap();
            Ok::<_, CallError>(handled.answer)
        });
        pulled.await.map_err(|_| none())
    }
}

impl Guests {
    pub(crate) fn new() -> Guests {
        let children = Children::default();
        let engine = Engine::with_slots(16).unwrap();
        let threads = GuestThreads::start().unwrap();
        let library = Library::new(engine, threads, Pulled(children.clone()));
        Guests { library, children }
    }

    pub(crate) fn functions(&self) -> RunFunctions {
        let functions = Arc::new(Functions::new(self.library.clone(), Arc::new(|_| {})));
        RunFunctions::new(move |ask: FunctionAsk| {
            let functions = functions.clone();
            async move {
                let grants = (&Policy::default(), Limits::default());
                functions
                    .call(&ask.tenant, &ask.module, None, grants, ask.call)
                    .await
            }
        })
    }

    /// Whether such a child is one of these.
    pub(crate) fn has(child: &ChildId) -> bool {
        ["module", "sandbox"].contains(&child.kind())
    }

    /// Calls a child; it may call others meanwhile.
    pub(crate) async fn call(
        self,
        child: ChildId,
        body: Bytes,
        answer: oneshot::Sender<Result<Answered, CallError>>,
    ) {
        let kept = self.child(&child).await;
        let mut kept = kept.lock().await;
        let body = kept.handle(body).await;
        let _ = answer.send(Ok(Answered {
            body,
            reflects: kept.seq,
            node: NodeId(1),
        }));
    }

    async fn child(&self, child: &ChildId) -> Arc<Mutex<Kept>> {
        let mut children = self.children.lock().await;
        if let Some(kept) = children.get(child) {
            return kept.clone();
        }
        let (context, empty) = (
            Context::new(child.clone(), |_, _| {}),
            Checkpoint::default(),
        );
        let guest = match child.kind() {
            "module" => Guest::Module(Modules::default().start(context, empty).await.unwrap()),
            _ => {
                let kind = Sandbox::new(self.library.clone());
                Guest::Sandbox(kind.start(context, empty).await.unwrap())
            }
        };
        let kept = Arc::new(Mutex::new(Kept {
            guest,
            seq: Seq::ZERO,
        }));
        children.insert(child.clone(), kept.clone());
        kept
    }

    /// Those that have records; nobody is silent.
    pub(crate) async fn list(&self, of: &ChildrenOf) -> Listing {
        let mut items = Vec::new();
        for (child, kept) in self.children.lock().await.iter() {
            let seq = kept.lock().await.seq;
            let wanted = of.kind.as_deref().is_none_or(|kind| kind == child.kind())
                && of
                    .tenant
                    .as_deref()
                    .is_none_or(|tenant| tenant == child.tenant())
                && of
                    .after
                    .as_deref()
                    .is_none_or(|after| child.as_str() > after);
            if wanted && seq > Seq::ZERO {
                items.push(Listed {
                    child: child.clone(),
                    seq,
                    node: NodeId(1),
                });
            }
        }
        let more = items.len() > of.limit;
        items.truncate(of.limit);
        Listing {
            items,
            more,
            silent: Vec::new(),
        }
    }
}
