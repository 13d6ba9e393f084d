// Runs in a world of its own in each document: the page sees neither it nor what it listens to. It says
// that something changed, and reads the page when it is asked. `understudyTell` is the way out.
(() => {
  if (globalThis.understudyRead) return understudyTell("again");

  const SETTLE_MS = 100;
  const waiting = new Set();
  const tell = (what) => {
    try {
      understudyTell(what);
    } catch {
      // Nobody listens any more.
    }
  };
  const note = (what) => {
    if (waiting.size === 0) {
      setTimeout(() => {
        const said = [...waiting];
        waiting.clear();
        said.forEach(tell);
      }, SETTLE_MS);
    }
    waiting.add(what);
  };
  const on = (target, events, heard) => {
    for (const event of events) target.addEventListener(event, heard, { capture: true, passive: true });
  };

  const touched = new WeakSet();
  on(self, ["input"], (event) => {
    const host = event.target?.closest?.("[contenteditable]");
    if (host) touched.add(host);
  });
  // A document that was kept while the page was elsewhere.
  on(self, ["pageshow"], (event) => event.persisted && tell("ready"));
  on(self, ["input", "change", "reset", "scroll", "focusin", "DOMContentLoaded", "load"], () => note("change"));
  // Both hear what has no event of the document: pushState and replaceState, and a form that is posted.
  if (self.navigation) {
    on(navigation, ["currententrychange"], () => note("change"));
    on(navigation, ["navigate"], (event) => {
      if (event.formData) tell("post " + event.destination.url);
    });
  }
  // Cookies: what scripts set is told, what answers set comes with a resource that was fetched.
  on(self.cookieStore ?? new EventTarget(), ["change"], () => note("cookies"));
  try {
    new PerformanceObserver(() => note("cookies")).observe({ type: "resource" });
  } catch {
    // The node asks each second anyway.
  }

  // Texts may hold half a surrogate pair, which no JSON reader outside takes.
  const text = (s) => (s.isWellFormed() && s[0] !== "\u0001" ? s : "\u0001" + JSON.stringify(s));

  // A page may have a form with a field named `id`, or an image named `title`, that stands in the way.
  const own = (type, name) => {
    const { get, value } = Object.getOwnPropertyDescriptor(type.prototype, name);
    return (object, ...given) => (get ?? value).apply(object, given);
  };
  const all = own(Document, "querySelectorAll");
  const attribute = own(Element, "getAttribute");
  const localName = own(Element, "localName");
  const previous = own(Element, "previousElementSibling");
  const parent = own(Node, "parentElement");
  const root = () => own(Document, "documentElement")(document);

  const path = (element) => {
    const parts = [];
    for (let e = element; e && e !== root(); e = parent(e)) {
      const id = attribute(e, "id") && "#" + CSS.escape(attribute(e, "id"));
      if (id && all(document, id).length === 1) {
        parts.unshift(id);
        return parts.join(">");
      }
      let nth = 1;
      for (let s = previous(e); s; s = previous(s)) nth += localName(s) === localName(e);
      parts.unshift(`${CSS.escape(localName(e))}:nth-of-type(${nth})`);
    }
    return [":root", ...parts].join(">");
  };

  const UNTAKEN = /^(password|hidden|file|submit|button|image|reset)$/;
  const SECRET = /(current-password|new-password|one-time-code|cc-number|cc-csc)/;
  // What the user changed: fields that are as the document has them come back by themselves.
  const value = (e, edited) => {
    if (e.localName === "select") {
      const first = e.multiple || [...e.options].some((o) => o.defaultSelected) ? -1 : 0;
      const changed = [...e.options].some((o, i) => o.selected !== (o.defaultSelected || i === first));
      return changed && { selected: [...e.selectedOptions].map((o) => text(o.value)) };
    }
    if (e.localName !== "input" && e.localName !== "textarea") {
      return (touched.has(e) || edited.includes(path(e))) && { html: text(e.innerHTML) };
    }
    if (UNTAKEN.test(e.type) || SECRET.test(e.autocomplete)) return null;
    if (e.type === "checkbox" || e.type === "radio") {
      return e.checked !== e.defaultChecked && { checked: e.checked };
    }
    return e.value !== e.defaultValue && { text: text(e.value) };
  };

  const items = (storage, bytesMax) => {
    const out = { items: {}, left_out: 0 };
    let left = bytesMax;
    for (let i = 0; i < storage.length; i++) {
      const key = storage.key(i);
      const item = storage.getItem(key);
      left -= key.length + item.length;
      if (left < 0) {
        left += key.length + item.length;
        out.left_out++;
      } else {
        // An object would keep `__proto__` for itself.
        Object.defineProperty(out.items, text(key), { value: text(item), enumerable: true });
      }
    }
    return out;
  };
  const attempt = (read) => {
    try {
      return read();
    } catch {
      return null;
    }
  };

  globalThis.understudyRead = ({ stored, edited, fieldsMax, fieldMax, storageMax }) => {
    const fields = [];
    let left_out = 0;
    for (const e of all(document, "input,textarea,select,[contenteditable]")) {
      const changed = attempt(() => value(e, edited));
      if (!changed) continue;
      if (fields.length >= fieldsMax || JSON.stringify(changed).length > fieldMax) {
        left_out++;
        continue;
      }
      fields.push({ path: path(e), kind: `${e.localName} ${e.type ?? ""}`.trim(), name: text(e.name ?? ""), value: changed });
    }
    const active = own(Document, "activeElement")(document);
    const state = attempt(() => JSON.stringify(history.state));
    return JSON.stringify({
      href: location.href,
      origin: location.origin,
      redirected: (performance.getEntriesByType("navigation")[0]?.redirectCount ?? 0) > 0,
      title: text(own(Document, "title")(document)),
      x: Math.round(scrollX),
      y: Math.round(scrollY),
      focus: active && active !== root() && localName(active) !== "body" ? path(active) : null,
      state: state && state !== "null" && state.length <= fieldMax ? text(state) : null,
      fields,
      left_out,
      session: stored ? attempt(() => items(sessionStorage, storageMax)) : null,
      local: stored ? attempt(() => items(localStorage, storageMax)) : null,
    });
  };
  tell("ready");
})();
