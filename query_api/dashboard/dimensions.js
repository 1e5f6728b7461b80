// What the API keeps of what: its metrics and dimensions, as far as the dashboard shows them.

import { at, clip, count, country, decimal, duration, languageName, percent } from "./format.js";
import { t } from "./language.js";
import { pageLabel } from "./dom.js";

/** Metrics in the order of their tiles. Those of one unit share the chart's scale; `style`: of their line. */
export const METRICS = {
  visitors: { unit: "count", style: "second", byQuarter: true },
  sessions: { unit: "count", style: "plain" },
  page_views: { unit: "count", style: "accent" },
  pages_per_session: { unit: "ratio", style: "accent" },
  events: { unit: "count", style: "soft" },
  bounce_rate: { unit: "fraction", style: "accent" },
  avg_session_time: { unit: "seconds", style: "accent" },
  median_session_time: { unit: "seconds", style: "plain", byQuarter: true },
  conversions: { unit: "count", style: "third" },
  conversion_rate: { unit: "fraction", style: "plain" },
};

/** Rates and times of no sessions at all are not 0: there are none. */
export const OF_SESSIONS = new Set([
  "pages_per_session", "bounce_rate", "avg_session_time", "median_session_time", "conversion_rate",
]);

const BY_SESSION = [
  "sessions", "page_views", "events", "bounce_rate", "avg_session_time", "pages_per_session", "conversions",
  "conversion_rate",
];
const BY_MONEY = ["conversions", "conversion_values"];

/**
 * `metrics`: what there is of each label; the first one sorts. `of(session)`: the label of an active session, where its
 * row tells it.
 */
export const DIMENSIONS = {
  page: { metrics: ["page_views"], of: (session) => pathOf(session.current_page) },
  entry_page: { metrics: BY_SESSION, of: (session) => pathOf(session.entry_page) },
  exit_page: { metrics: BY_SESSION, of: (session) => pathOf(session.current_page) },
  referrer: { metrics: BY_SESSION, of: (session) => session.referrer },
  source: { metrics: BY_SESSION, of: (session) => session.source },
  channel: { metrics: BY_SESSION, of: (session) => session.channel },
  utm_source: { metrics: BY_SESSION },
  utm_medium: { metrics: BY_SESSION },
  utm_campaign: { metrics: BY_SESSION },
  utm_term: { metrics: BY_SESSION },
  utm_content: { metrics: BY_SESSION },
  country: { metrics: BY_SESSION, of: (session) => session.country },
  language: { metrics: BY_SESSION, of: (session) => session.language },
  device: { metrics: BY_SESSION, of: (session) => session.device },
  browser: { metrics: BY_SESSION, of: (session) => session.browser },
  os: { metrics: BY_SESSION, of: (session) => session.os },
  event_type: { metrics: ["events"] },
  conversion_type: { metrics: BY_MONEY },
  currency: { metrics: BY_MONEY },
};

const PAGES = new Set(["page", "entry_page", "exit_page"]);
const WORDS = {
  channel: ["direct", "search", "social", "referral", "email", "paid", "ai"],
  device: ["desktop", "mobile", "tablet"],
};

/** A page as roll-ups name it: its path. */
function pathOf(url) {
  const path = String(url ?? "").replace(/^[^/?#]+:\/\/[^/?#]*/, "").replace(/[?#].*$/s, "");
  return url ? path || "/" : "";
}

export const isPage = (dimension) => PAGES.has(dimension);

/** A label in the reader's words; "" has a name as well. */
export function labelText(dimension, label) {
  if (label === "") return t(dimension === "referrer" ? "labelDirect" : "labelUnknown");
  if (isPage(dimension)) return pageLabel(label);
  if (dimension === "country") return country(label);
  if (dimension === "language") return languageName(label);
  if (WORDS[dimension]?.includes(label)) return t(`${dimension}_${label}`);
  if (dimension === "event_type") return eventName(label);
  return clip(label);
}

const EVENTS = new Set(["page_view", "click", "conversion", "heartbeat", "page_exit", "scroll"]);
export const eventName = (type) => (EVENTS.has(type) ? t(`event_${type}`) : clip(type, 64));
export const isKnownEvent = (type) => EVENTS.has(type);

const FORMATS = { count, fraction: percent, seconds: duration, ratio: decimal };

/** A figure of a metric as text. */
export const figure = (metric, value) => FORMATS[METRICS[metric].unit](value);

/** The moment of the newest event in an answer, NaN if it has none. */
export const asOf = (answer) => at(answer?.as_of ?? undefined);
