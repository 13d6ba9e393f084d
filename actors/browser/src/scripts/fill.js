// Runs in a world of its own in the restored page, again and again until all is as it was. It dispatches
// no event: a page that sends a form whenever a field changes must not send it once more.
({ url, fields, x, y, focus }) => {
  // What was typed for one page is not for another that it leads to now.
  const was = new URL(url);
  if (location.origin !== was.origin || location.pathname !== was.pathname) {
    return { moved: location.href, missing: 0, is_scrolled: true };
  }
  const text = (s) => (s[0] === "\u0001" ? JSON.parse(s.slice(1)) : s);
  const find = (path) => {
    try {
      return Document.prototype.querySelector.call(document, path);
    } catch {
      return null;
    }
  };
  const put = (e, value) => {
    if (value.selected) {
      const wanted = new Set(value.selected.map(text));
      for (const option of e.options) option.selected = wanted.has(option.value);
      return [...e.selectedOptions].length === wanted.size;
    }
    if ("checked" in value) return (e.checked = value.checked) === value.checked;
    const wanted = text(value.html ?? value.text);
    const property = "html" in value ? "innerHTML" : "value";
    if (e[property] !== wanted) e[property] = wanted;
    return e[property] === wanted;
  };
  let missing = 0;
  for (const { path, kind, name, value } of fields) {
    const e = find(path);
    const same = e && `${e.localName} ${e.type ?? ""}`.trim() === kind && (e.name ?? "") === text(name);
    let is_put = false;
    try {
      is_put = same && put(e, value);
    } catch {
      // Left as it is.
    }
    if (!is_put) missing++;
  }
  if (focus) find(focus)?.focus({ preventScroll: true });
  if (Math.round(scrollX) !== x || Math.round(scrollY) !== y) scrollTo({ left: x, top: y, behavior: "instant" });
  const is_scrolled = Math.abs(scrollX - x) <= 1 && Math.abs(scrollY - y) <= 1;
  return { moved: null, missing, is_scrolled };
}
