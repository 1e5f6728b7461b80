// Nodes from values. Page titles, URLs and referrers are written by strangers: they reach the page as text nodes
// only, and a link is made of nothing but an absolute http or https URL.

import { clip } from "./format.js";

export const $ = (id) => document.getElementById(id);

/** A node. `text` becomes its text, every other option an attribute; null, undefined and false are left out. */
export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") made.textContent = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Write only what differs: an untouched text node keeps selection and costs no layout. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setTitle(node, title) {
  if (node.title !== title) node.title = title;
}

/** A note under a panel that something is wrong with it; "" takes it away. */
export function setProblem(note, problem) {
  note.hidden = !problem;
  setText(note, problem);
}

/** The URL as an object if it is absolute http or https, else null. */
export function webUrl(value) {
  try {
    const url = new URL(String(value));
    return url.protocol === "http:" || url.protocol === "https:" ? url : null;
  } catch {
    return null;
  }
}

/** What tells a page from the others of its site: path, query and fragment of a web URL, else all of it. */
export function pageLabel(value) {
  const url = webUrl(value);
  return clip(url ? url.pathname + url.search + url.hash : value);
}

/** A link to a web URL; for anything else the same text, not a link. */
export function link(value, text) {
  const url = webUrl(value);
  if (!url) return element("span", { class: "data", text });
  const { href } = url;
  return element("a", { class: "data", text, href, rel: "noopener noreferrer", target: "_blank", title: clip(href) });
}

/**
 * Make `parent`'s children show `items`, one node for each key, in order. Nodes whose key stays are kept and
 * updated, so that focus, selection and scroll position outlast a refresh.
 */
export function keyed(parent, items, keyOf, create, update = () => {}) {
  const focused = parent.contains(document.activeElement) ? document.activeElement : null;
  const kept = new Map();
  for (const node of parent.children) kept.set(node.dataset.key, node);
  let place = parent.firstElementChild;
  const used = new Set();
  for (const item of items) {
    const key = String(keyOf(item));
    if (used.has(key)) continue;
    used.add(key);
    let node = kept.get(key);
    if (!node) {
      node = create(item);
      node.dataset.key = key;
    }
    update(node, item);
    if (node === place) place = place.nextElementSibling;
    else parent.insertBefore(node, place);
  }
  for (const [key, node] of kept) if (!used.has(key)) node.remove();
  // A node that was moved has lost the focus on the way.
  if (focused && focused.isConnected && document.activeElement !== focused) focused.focus({ preventScroll: true });
}
