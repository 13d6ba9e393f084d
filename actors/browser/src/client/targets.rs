//! Targets as a client sees them: those of its session, told of and attached to as by a browser.
//!
//! Owns: the emulation of `Target.setDiscoverTargets` and `Target.setAutoAttach` for each root of the
//! client, and the record of what it is attached to. See the module above for why they are emulated.

use std::collections::HashSet;

use super::speech::{self, Speech, empty, raw};
use super::{ATTACHED_MAX, Attachment, Client, Ended, Hand, Sent};
use crate::cdp::Event;
use crate::filter::{Attached, AutoAttach, BROWSER_TARGET, Command, Place, Target, TargetFilter};

impl Client {
    /// Learns what is there before the first command is read.
    pub(super) async fn discover(&mut self) -> Result<(), Ended> {
        let all = raw(&serde_json::json!({ "discover": true, "filter": [{}] }));
        let session = self.root.session().clone();
        let tag = self.pass_own(&session, "Target.setDiscoverTargets", &all, Sent::Discovery);
        let tag = tag.await;
        while self.sent.contains_key(&tag) {
            let heard = self.root.next().await;
            self.hear(heard).await?;
        }
        Ok(())
    }

    /// Attaches a root to what is there, and answers when that is done.
    pub(super) async fn auto_attach(
        &mut self,
        command: &Command<'_>,
        wanted: Option<AutoAttach>,
    ) -> Result<(), Ended> {
        let session = command.session.as_deref().unwrap_or_default();
        let is_meant = |kind: &str| {
            let wanted = wanted.as_ref();
            attaches_by_itself(kind) && wanted.is_some_and(|wanted| wanted.filter.matches(kind))
        };
        let (meant, not_meant): (Vec<_>, Vec<_>) = self
            .targets
            .iter()
            .map(|(id, target)| (id.clone(), is_meant(&target.kind)))
            .partition(|(_, is_meant)| *is_meant);
        let hand = self.hands.entry(session.into()).or_default();
        hand.attach = wanted;
        let over = not_meant
            .iter()
            .filter_map(|(id, _)| hand.targets.remove(id));
        let over: Vec<_> = over
            .filter_map(|attachment| match attachment {
                Attachment::Done(session) => Some(session),
                Attachment::Sent(_) => None,
            })
            .collect();
        self.watch_the_door();
        for attached in over {
            self.detach(session, &attached).await;
        }
        let mut waits_for = HashSet::new();
        for (target, _) in meant {
            waits_for.extend(self.attach(session, &target).await);
        }
        self.answer(command.id, session, empty(), waits_for).await
    }

    /// New pages wait for this client if one of its roots asked for that.
    fn watch_the_door(&mut self) {
        let waits = |hand: &Hand| {
            let wanted = hand.attach.as_ref().filter(|wanted| wanted.waits);
            // A page is attached to by itself or through its tab.
            wanted.is_some_and(|wanted| {
                ["page", "tab"]
                    .iter()
                    .any(|kind| wanted.filter.matches(kind))
            })
        };
        if !self.hands.values().any(waits) {
            self.watch = None;
        } else if self.watch.is_none() {
            let jail = self.jail.clone();
            self.watch = jail.door().map(|door| door.watch(&jail));
        }
    }

    /// Attaches a root to a target by itself; what has to be waited for.
    async fn attach(&mut self, session: &str, target: &str) -> Option<u64> {
        match self.hands.get(session)?.targets.get(target) {
            Some(Attachment::Sent(tag)) => return Some(*tag),
            Some(Attachment::Done(_)) => return None,
            None if self.attached.len() >= ATTACHED_MAX => return None,
            None => {}
        }
        let at = self.real(session);
        let params = raw(&serde_json::json!({ "targetId": target, "flatten": true }));
        let sent = Sent::Attach {
            hand: session.into(),
            target: target.into(),
        };
        let tag = self.pass_own(&at, "Target.attachToTarget", &params, sent);
        let tag = tag.await;
        let hand = self.hands.get_mut(session)?;
        hand.targets.insert(target.into(), Attachment::Sent(tag));
        Some(tag)
    }

    async fn detach(&mut self, session: &str, attached: &str) {
        let at = self.real(session);
        let params = raw(&serde_json::json!({ "sessionId": attached }));
        let method = "Target.detachFromTarget";
        self.pass_own(&at, method, &params, Sent::Nothing).await;
    }

    pub(super) async fn start_discovery(
        &mut self,
        session: &str,
        filter: Option<TargetFilter>,
    ) -> Result<(), Ended> {
        let hand = self.hands.entry(session.into()).or_default();
        let before = std::mem::replace(&mut hand.discover, filter.clone());
        let Some(filter) = filter else {
            return Ok(());
        };
        let is_new = |kind: &str| {
            let is_known = before.as_ref().is_some_and(|before| before.matches(kind));
            filter.matches(kind) && !is_known
        };
        let ours = self.targets.values().filter(|target| is_new(&target.kind));
        let mut infos: Vec<_> = ours.map(|target| target.info.clone()).collect();
        if is_new("browser") {
            infos.push(raw(&browser_info()));
        }
        for info in infos {
            let params = raw(&speech::OneTarget { target_info: &info });
            let event = Speech::event("Target.targetCreated", session, &params);
            self.say(event).await?;
        }
        Ok(())
    }

    /// A target came, changed, crashed or went.
    pub(super) async fn discovered(&mut self, event: &Event) -> Result<(), Ended> {
        let Some(params) = speech::params(&event.raw) else {
            return Ok(());
        };
        let (id, is_new) = match speech::info(params) {
            Some(info) => {
                let context = info.context.as_deref().unwrap_or_default();
                if !self.jail.owns(context) {
                    return Ok(());
                }
                let target = Target {
                    kind: info.kind.as_ref().into(),
                    context: context.into(),
                    info: info.raw.to_owned(),
                };
                let id: Box<str> = info.id.as_ref().into();
                (id.clone(), self.targets.insert(id, target).is_none())
            }
            None => match speech::target_id(params) {
                Some(id) => (id.into(), false),
                None => return Ok(()),
            },
        };
        let Some(target) = self.targets.get(&id) else {
            return Ok(());
        };
        let (mut hears, mut attach) = (Vec::new(), Vec::new());
        for (session, hand) in &self.hands {
            let is_meant = |filter: &TargetFilter| filter.matches(&target.kind);
            if hand.discover.as_ref().is_some_and(is_meant) {
                hears.push(session.clone());
            }
            let by_itself = attaches_by_itself(&target.kind) && is_new;
            let wanted = hand.attach.as_ref();
            if by_itself && wanted.is_some_and(|wanted| is_meant(&wanted.filter)) {
                attach.push(session.clone());
            }
        }
        if &*event.method == "Target.targetDestroyed" {
            self.targets.remove(&id);
            if let Some(watch) = &self.watch {
                watch.forget(&id);
            }
            for hand in self.hands.values_mut() {
                hand.targets.remove(&id);
            }
        }
        for session in hears {
            self.say(Speech::event(&event.method, &session, params))
                .await?;
        }
        for session in attach {
            self.attach(&session, &id).await;
        }
        Ok(())
    }

    pub(super) async fn attached_to(&mut self, session: &str, event: &Event) -> Result<(), Ended> {
        let Some((attached, info)) = speech::attached(&event.raw) else {
            return Ok(());
        };
        let is_browser = info.kind == "browser";
        let is_ours = match &info.context {
            _ if is_browser => self.roots_expected > 0,
            Some(context) => self.jail.owns(context),
            // What is attached through a page belongs to the page.
            None => !session.is_empty(),
        };
        if !is_ours {
            // Chromium attached to what was not asked for: nobody speaks to it, nor waits for it.
            let none = empty();
            let resume = "Runtime.runIfWaitingForDebugger";
            self.pass_own(&attached, resume, &none, Sent::Nothing).await;
            self.detach(session, &attached).await;
            return Ok(());
        }
        let place = if is_browser { Place::Root } else { Place::Page };
        let is_held = self
            .watch
            .as_ref()
            .is_some_and(|watch| watch.holds(&info.id));
        let target: Box<str> = info.id.as_ref().into();
        if let Some(hand) = self.hands.get_mut(session)
            && let Some(attachment @ Attachment::Sent(_)) = hand.targets.get_mut(&target)
        {
            *attachment = Attachment::Done(attached.as_ref().into());
        }
        let attachment = Attached {
            parent: session.into(),
            target,
            place,
        };
        self.attached.insert(attached.as_ref().into(), attachment);
        let browser = raw(&browser_info());
        let params = match (is_browser, is_held) {
            (false, false) => return self.forward(session, event).await,
            (false, true) => info.raw,
            (true, _) => &*browser,
        };
        let params = raw(&speech::AttachedTo {
            session_id: &attached,
            target_info: params,
            waiting_for_debugger: is_held,
        });
        let event = Speech::event(&event.method, session, &params);
        self.say(event).await
    }

    pub(super) async fn detached_from(
        &mut self,
        session: &str,
        event: &Event,
    ) -> Result<(), Ended> {
        let Some(detached) = speech::detached(&event.raw) else {
            return Ok(());
        };
        if !self.attached.contains_key(&*detached) {
            return Ok(());
        }
        let mut over = vec![Box::<str>::from(&*detached)];
        while let Some(next) = over.pop() {
            self.hands.remove(&next);
            if let Some(attached) = self.attached.remove(&next)
                && let Some(hand) = self.hands.get_mut(&attached.parent)
                && let Some(Attachment::Done(by_itself)) = hand.targets.get(&attached.target)
                && *by_itself == next
            {
                hand.targets.remove(&attached.target);
            }
            let below = self
                .attached
                .iter()
                .filter(|(_, below)| below.parent == next);
            over.extend(below.map(|(id, _)| id.clone()));
        }
        self.watch_the_door();
        self.forward(session, event).await
    }
}

/// Kinds that a root of Chromium's attaches to by itself. Frames and workers of a page are attached
/// through the page.
fn attaches_by_itself(kind: &str) -> bool {
    matches!(
        kind,
        "page" | "tab" | "service_worker" | "shared_worker" | "background_page" | "webview"
    )
}

pub(super) fn browser_info() -> serde_json::Value {
    serde_json::json!({
        "targetId": BROWSER_TARGET,
        "type": "browser",
        "title": "",
        "url": "",
        "attached": true,
        "canAccessOpener": false,
    })
}
