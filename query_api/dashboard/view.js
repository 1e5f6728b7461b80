// What is looked at: site, range, comparison, filter and lines. All but comparison and lines are in the page's address,
// so that back, forward, reload and a copied address work.

import { now } from "./api.js";
import { DIMENSIONS, METRICS } from "./dimensions.js";
import { remember, remembered } from "./store.js";
import { startOfDay, startOfHour, zone } from "./zone.js";

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const QUARTER = 15 * MINUTE; // the API keeps figures by quarter of an hour
export const LONGEST_RANGE = 366 * DAY;

/** Ranges until now: where each begins. Long ones begin with a day of the chosen time zone. */
const quarterOf = (ms) => Math.floor(ms / QUARTER) * QUARTER;
const PRESETS = {
  "1h": (ms) => quarterOf(ms - HOUR),
  "6h": (ms) => quarterOf(ms - 6 * HOUR),
  "24h": (ms) => quarterOf(ms - DAY),
  "7d": (ms) => startOfHour(ms - 7 * DAY),
  "30d": (ms) => startOfDay(ms, -29),
  "12mo": (ms) => startOfDay(ms, -364),
};
const DEFAULT_RANGE = "24h";
export const RANGES = [...Object.keys(PRESETS), "custom"];

// Not all dashboards move on to the next quarter at the same moment.
const lead = Math.random() * MINUTE;

/** {site, range, from, to (ms, of a custom range), filter: {dimension, label} or null} */
export let view = { site: null, range: DEFAULT_RANGE, filter: null };

export const choices = {
  compare: remembered("compare") !== "off",
  lines: (remembered("lines") ?? "").split(",").filter((name) => Object.hasOwn(METRICS, name)),
};
if (!choices.lines.length) choices.lines = ["page_views", "sessions"];

export function keepChoices() {
  remember("compare", choices.compare ? "on" : "off");
  remember("lines", choices.lines.join());
}

const listeners = [];

/** `listener(before)` is called when the view has become another. */
export const onView = (listener) => listeners.push(listener);

function become(next) {
  const before = view;
  view = next;
  for (const listener of listeners) listener(before);
}

export function readAddress() {
  const query = new URLSearchParams(location.search);
  const site = query.get("site") || view.site;
  const dimension = query.get("dimension");
  const filter = Object.hasOwn(DIMENSIONS, dimension) && query.has("label")
    ? { dimension, label: query.get("label") } : null;
  const [from, to] = [Date.parse(query.get("from")), Date.parse(query.get("to"))];
  if (from < to) return { site, filter, range: "custom", from, to };
  return { site, filter, range: Object.hasOwn(PRESETS, query.get("range")) ? query.get("range") : DEFAULT_RANGE };
}

function addressOf({ site, range, from, to, filter }) {
  const url = new URL(location.pathname, location.origin);
  const lang = new URLSearchParams(location.search).get("lang");
  if (lang) url.searchParams.set("lang", lang);
  if (site) url.searchParams.set("site", site);
  if (range === "custom") {
    url.searchParams.set("from", new Date(from).toISOString());
    url.searchParams.set("to", new Date(to).toISOString());
  } else if (range !== DEFAULT_RANGE) url.searchParams.set("range", range);
  if (filter) {
    url.searchParams.set("dimension", filter.dimension);
    url.searchParams.set("label", filter.label);
  }
  return url;
}

export function goTo(change) {
  // Labels of one site mean nothing on another.
  const next = { ...view, ...(Object.hasOwn(change, "site") ? { filter: null } : {}), ...change };
  const url = addressOf(next);
  if (url.href !== location.href) history.pushState(null, "", url);
  become(next);
}

/** The first view: what the address says, with the site found if it says none. */
export function begin(site) {
  view = { ...readAddress(), site };
  history.replaceState(null, "", addressOf(view));
}

addEventListener("popstate", () => become(readAddress()));

export const isFiltered = (dimension, label) =>
  view.filter?.dimension === dimension && (label === undefined || view.filter.label === label);

/** Filter to a label, or, when it is the filter already, take the filter away. */
export function toggleFilter(dimension, label) {
  goTo({ filter: isFiltered(dimension, label) ? null : { dimension, label } });
}

let asked = null;

/** The stretch that is asked for: {from, to} on quarters of an hour, so that the same question stays the same URL. */
export function stretch() {
  const moved = asked && view.range !== "custom" && now() + lead >= asked.to;
  if (asked?.view !== view || asked.zone !== zone() || moved) asked = { view, zone: zone(), ...stretchOf(view) };
  return asked;
}

function stretchOf({ range, from, to }) {
  if (range === "custom") return { from: quarterOf(from), to: Math.ceil(to / QUARTER) * QUARTER };
  return { from: PRESETS[range](now()), to: quarterOf(now() + lead) + QUARTER };
}

/** Whether figures of the stretch still grow with what happens now. */
export const isOpen = ({ to }) => to > now();

const STEPS = { minute: MINUTE, "5m": 5 * MINUTE, "15m": QUARTER, hour: HOUR, day: DAY };
export const stepOf = (interval) => STEPS[interval];

/** The step of the chart: about 30 to 200 points. `byQuarter`: some figure is not kept by the minute. */
export function intervalOf({ from, to }, byQuarter) {
  const length = to - from;
  if (length <= 2 * HOUR && !byQuarter) return "minute";
  if (length <= 12 * HOUR && !byQuarter) return "5m";
  if (length <= 2 * DAY) return "15m";
  return length <= 14 * DAY ? "hour" : "day";
}
