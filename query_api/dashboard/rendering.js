// How values become text and nodes. Page titles, URLs and referrers are written by strangers: they reach
// the page as text nodes only, and a link is made of nothing but an absolute http or https URL.

export const locale = document.documentElement.lang || "en";

const whole = new Intl.NumberFormat(locale);
const short = new Intl.NumberFormat(locale, { notation: "compact", maximumFractionDigits: 1 });
const share = new Intl.NumberFormat(locale, { style: "percent", maximumFractionDigits: 1 });
const wholeShare = new Intl.NumberFormat(locale, { style: "percent", maximumFractionDigits: 0 });
const regions = new Intl.DisplayNames(locale, { type: "region" });

const times = (options) => new Intl.DateTimeFormat(locale, { hourCycle: "h23", ...options });
const minuteTime = times({ hour: "2-digit", minute: "2-digit" });
const secondTime = times({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dayTime = times({ month: "short", day: "numeric" });
const momentTime = times({ month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
const yearTime = times({ year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const LONGEST_TEXT = 400;

export const count = (value) => (isNumber(value) ? whole.format(value) : "–");
export const counted = (value, unit) => `${count(value)} ${value === 1 ? unit : `${unit}s`}`;
export const compact = (value) => short.format(value);
export const percent = (value) => (isNumber(value) ? share.format(value) : "–");
export const roundPercent = (value) => wholeShare.format(value);
export const clock = (ms) => minuteTime.format(ms);
export const clockSeconds = (ms) => secondTime.format(ms);
export const day = (ms) => dayTime.format(ms);

/** A moment with as much of the date as tells it from others near `now` (ms). */
export function moment(ms, now) {
  const date = new Date(ms);
  const today = new Date(now);
  if (date.getFullYear() !== today.getFullYear()) return yearTime.format(ms);
  return date.toDateString() === today.toDateString() ? minuteTime.format(ms) : momentTime.format(ms);
}

/** Seconds as the two units that matter: "8 s", "4 m 05 s", "2 h 10 m", "3 d 4 h". */
export function duration(seconds) {
  if (!isNumber(seconds)) return "–";
  const total = Math.max(0, Math.round(seconds));
  const pad = (value) => String(value).padStart(2, "0");
  if (total < 60) return `${total} s`;
  if (total < 3600) return `${Math.floor(total / 60)} m ${pad(total % 60)} s`;
  if (total < 86400) return `${Math.floor(total / 3600)} h ${pad(Math.floor((total % 3600) / 60))} m`;
  return `${Math.floor(total / 86400)} d ${Math.floor((total % 86400) / 3600)} h`;
}

/** How long ago (ms) in one unit: "now", "12 s ago", "4 m ago". */
export function ago(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 1) return "now";
  if (seconds < 60) return `${seconds} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} m ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${whole.format(Math.floor(seconds / 86400))} d ago`;
}

/** An amount of money; a currency that the browser does not know stands as it came. */
export function money(value, currency) {
  try {
    return new Intl.NumberFormat(locale, { style: "currency", currency, maximumFractionDigits: 2 }).format(value);
  } catch {
    return clip(`${count(value)} ${currency || ""}`.trim());
  }
}

/** A country's name for its ISO code, else what came. */
export function country(code) {
  if (!/^[A-Z]{2}$/.test(code || "")) return clip(code || "–");
  return regions.of(code);
}

export function timezone(now) {
  const options = new Intl.DateTimeFormat(locale, { timeZoneName: "longOffset" });
  const offset = options.formatToParts(now).find((part) => part.type === "timeZoneName")?.value ?? "";
  return `${options.resolvedOptions().timeZone} (${offset.replace("GMT", "UTC").replace(/^UTC$/, "UTC+00:00")})`;
}

/** A moment from the API (ISO 8601 or ms) as ms since 1970; NaN if it is none. */
export const at = (value) => (typeof value === "number" ? value : Date.parse(value));

/** Text short enough to lay out; what is cut off ends in an ellipsis. */
export function clip(value, longest = LONGEST_TEXT) {
  const text = String(value ?? "");
  return text.length > longest ? `${text.slice(0, longest)}…` : text;
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

/** A node. `text` becomes its text, every other option an attribute; null and undefined are left out. */
export function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined) continue;
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

/**
 * Make `parent`'s children show `items`, one node for each key, in order. Nodes whose key stays are kept and
 * updated, so that focus, selection and scroll position outlast a refresh.
 */
export function keyed(parent, items, keyOf, create, update) {
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
