// The dashboard: what is asked of the query API and when, and what of the answers goes where.
//
// Two pollers run on their own: "live" (who is here now) and "statistics" (figures of the chosen stretch). What
// is shown is decided by the page's URL (site, range or from and to), so that back, forward and a copied address
// work. Every answer belongs to the view that asked for it; one that comes after the view changed is dropped.

import { MinuteBars, TimeChart } from "./chart.js";
import {
  ago, at, clip, clock, clockSeconds, count, counted, country, duration, element, keyed, link, moment, money, pageLabel,
  percent, roundPercent, setText, setTitle, timezone,
} from "./rendering.js";

const LIVE_MS = 2_000;
const STATISTICS_MS = 5_000;
const CLOSED_RANGE_MS = 60_000; // figures of a stretch that is over change only by late events
const SITES_MS = 60_000;
const LONGEST_WAIT_MS = 30_000;
const TIMEOUT_MS = 15_000;
const ANNOUNCE_MS = 15_000;
const HOLD_MS = 3_000;
const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const QUARTER = 15 * MINUTE; // the API keeps figures by quarter of an hour
const STEP = 5 * MINUTE;
const CHART_LONGEST = 7 * DAY;
const QUERY_LONGEST = 366 * DAY;
const MOST_POINTS = 600; // more steps than this are summed to hours
const LIST_LENGTH = 10;
const MOST_SESSIONS = 100;
const MOST_EVENTS = 500;

const PRESETS = {
  "1h": { length: HOUR, label: "last hour" },
  "6h": { length: 6 * HOUR, label: "last 6 hours" },
  "24h": { length: DAY, label: "last 24 hours" },
  "7d": { length: 7 * DAY, label: "last 7 days" },
};
const DEFAULT_RANGE = "24h";

const NOT_AS_AGREED = "The query API’s answer is not as agreed.";

const $ = (id) => document.getElementById(id);

// ---------------------------------------------------------------- the API

class ApiError extends Error {
  /** `retryAfter`: ms that the server asks to wait, 0 if it does not say. */
  constructor(message, status = 0, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

let serverAhead = 0;
const now = () => Date.now() + serverAhead;

/** The server's clock decides what "ago" means; its header has whole seconds, so less than 2 s is no difference. */
function learnClock(response) {
  const age = Number(response.headers.get("age")) || 0; // s, in a proxy's cache
  const said = Date.parse(response.headers.get("date")) + age * 1000;
  if (Number.isNaN(said)) return;
  const ahead = said + 500 - Date.now();
  serverAhead = Math.abs(ahead) < 2_000 ? 0 : ahead;
}

/** The JSON at `path`. Throws ApiError with a sentence for the reader, AbortError if `signal` says so. */
async function ask(path, parameters, signal) {
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(parameters)) url.searchParams.set(name, value);
  let response;
  let text;
  try {
    // "no-cache" asks the server each time, and is answered 304 for what has not changed.
    response = await fetch(url, {
      signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]),
      cache: "no-cache",
      headers: { accept: "application/json" },
    });
    text = await response.text();
  } catch (error) {
    signal.throwIfAborted();
    if (error.name !== "TimeoutError") throw new ApiError("The query API cannot be reached.");
    throw new ApiError(`The query API has not answered within ${TIMEOUT_MS / 1000} s.`);
  }
  learnClock(response);
  let body;
  try {
    body = JSON.parse(text);
  } catch {
    body = undefined;
  }
  if (!response.ok) {
    const wait = Number(response.headers.get("retry-after")) * 1000 || 0;
    const cause = body?.error || `The query API answered with status ${response.status}.`;
    throw new ApiError(clip(cause), response.status, wait);
  }
  if (body === undefined || body === null) throw new ApiError("The query API’s answer is not JSON.", response.status);
  return body;
}

/** Runs `work(signal)` again and again: after `interval()` ms when it went well, later and later when it did not. */
class Poller {
  constructor(work, interval) {
    this.work = work;
    this.interval = interval;
    this.failures = 0;
    this.error = null;
    this.nextAt = null;
    this.succeededAt = null;
    this.running = null;
  }

  /** Begin at once, giving up what is under way; in a hidden tab only give it up. */
  restart() {
    this.stop();
    if (document.hidden) return;
    this.round();
  }

  stop() {
    clearTimeout(this.timer);
    this.running?.abort();
    this.running = null;
    this.nextAt = null;
  }

  async round() {
    const running = new AbortController();
    this.running = running;
    this.nextAt = null;
    let wait;
    try {
      await this.work(running.signal);
      if (running.signal.aborted) return;
      this.failures = 0;
      this.error = null;
      this.succeededAt = Date.now();
      wait = this.interval();
    } catch (error) {
      if (running.signal.aborted) return;
      if (!(error instanceof ApiError)) console.error(error);
      this.failures += 1;
      this.error = error;
      const jitter = 0.75 + Math.random() / 2;
      const backoff = Math.min(LONGEST_WAIT_MS, this.interval() * 2 ** (this.failures - 1)) * jitter;
      wait = Math.max(backoff, Math.min(error.retryAfter || 0, LONGEST_WAIT_MS));
    }
    this.nextAt = Date.now() + wait;
    this.timer = setTimeout(() => this.round(), wait);
    showFreshness();
  }
}

/**
 * Ask for several things at once and hand each answer to its panel. A panel whose answer failed keeps what it
 * shows and says so; only when all fail is it an outage, and the first error is thrown.
 */
async function fill(requests, signal) {
  const answers = await Promise.allSettled(requests.map(({ path, parameters }) => ask(path, parameters, signal)));
  if (signal.aborted) return;
  const refused = answers.filter((answer) => answer.status === "rejected");
  const outage = refused.length === answers.length;
  requests.forEach(({ panel, show }, index) => {
    const answer = answers[index];
    let problem = answer.status === "rejected" && !outage ? `Not up to date. ${answer.reason.message}` : "";
    if (answer.status === "fulfilled") {
      try {
        show(answer.value);
      } catch (error) {
        console.error(error);
        problem = `Not up to date. ${NOT_AS_AGREED}`;
      }
    }
    setProblem(panel, problem);
  });
  if (outage) throw refused[0].reason;
}

function setProblem(panel, problem) {
  const note = $(`${panel}-problem`);
  note.hidden = !problem;
  setText(note, problem);
}

// ---------------------------------------------------------------- the view: site and stretch of time

/** {site, range} or {site, range: "custom", from, to}; ms since 1970. */
let view = { site: null, range: DEFAULT_RANGE };
let sites = [];
let stretch = null; // {from, to} asked for, ms
let summary = null;
let realtime = null;

function viewOfUrl() {
  const query = new URLSearchParams(location.search);
  const site = query.get("site") || null;
  const [from, to] = [Date.parse(query.get("from")), Date.parse(query.get("to"))];
  if (from < to) return { site, range: "custom", from, to };
  return { site, range: Object.hasOwn(PRESETS, query.get("range")) ? query.get("range") : DEFAULT_RANGE };
}

function urlOfView() {
  const url = new URL(location.pathname, location.origin);
  if (view.site) url.searchParams.set("site", view.site);
  if (view.range === "custom") {
    url.searchParams.set("from", new Date(view.from).toISOString());
    url.searchParams.set("to", new Date(view.to).toISOString());
  } else if (view.range !== DEFAULT_RANGE) url.searchParams.set("range", view.range);
  return url;
}

/** The stretch that the view means now, on quarters of an hour, so that the same question stays the same URL. */
function stretchOf({ range, from, to }) {
  if (range === "custom") return { from: Math.floor(from / QUARTER) * QUARTER, to: Math.ceil(to / QUARTER) * QUARTER };
  const end = Math.ceil(now() / QUARTER) * QUARTER;
  const start = Math.floor((now() - PRESETS[range].length) / QUARTER) * QUARTER;
  return { from: Math.max(start, end - CHART_LONGEST), to: end };
}

function goTo(change) {
  view = { ...view, ...change };
  history.pushState(null, "", urlOfView());
  showView(Object.hasOwn(change, "site"));
}

/** Show the view anew. What is on the page belongs to another question: it is dimmed until the answer is there. */
function showView(siteChanged) {
  summary = null;
  $("summary").classList.add("pending");
  $("panels").classList.add("pending");
  $("chart").classList.add("pending");
  statistics.succeededAt = null;
  rounds = 0;
  if (siteChanged) {
    realtime = null;
    live.succeededAt = null;
    clearLive();
    clearFigures();
    $("session").close();
    live.restart();
  }
  $("empty").hidden = true;
  showControls();
  statistics.restart();
}

function showControls() {
  showSites();
  for (const radio of $("ranges").elements) if (radio.name === "range") radio.checked = radio.value === view.range;
  $("custom").hidden = view.range !== "custom";
  if (view.range === "custom") {
    $("custom-from").value = localInput(view.from);
    $("custom-to").value = localInput(view.to);
  }
}

function showSites() {
  const names = view.site && !sites.includes(view.site) ? [view.site, ...sites] : sites;
  keyed($("site"), names, (name) => name, (name) => element("option", { value: name, text: clip(name, 64) }), () => {});
  $("site").value = view.site ?? "";
}

async function learnSites() {
  try {
    sites = (await ask("/api/sites/", {}, new AbortController().signal)).sites.map(String);
    showSites();
  } catch (error) {
    // The figures fail as well then, and say so.
    if (!(error instanceof ApiError)) console.error(error);
  }
}

/** The first site where somebody is now, else the first that has figures at all. */
async function likelySite() {
  const { signal } = new AbortController();
  const candidates = sites.slice(0, 8);
  const answers = await Promise.allSettled(candidates.map((site) => ask("/api/realtime/", { site }, signal)));
  const lively = answers.findIndex((answer) => answer.status === "fulfilled" && answer.value.active_sessions > 0);
  return candidates[Math.max(lively, 0)] ?? "default";
}

// ---------------------------------------------------------------- live: who is here now

const minuteBars = new MinuteBars($("minutes"), "Events by minute, last 30 minutes");
let announced = { count: null, at: 0 };
let heldUntil = 0;

async function askLive(signal) {
  const { site } = view;
  await fill([
    { panel: "realtime", path: "/api/realtime/", parameters: { site }, show: showRealtime },
    { panel: "active", path: "/api/sessions/active/", parameters: { site, limit: MOST_SESSIONS }, show: showActive },
  ], signal);
  if (!signal.aborted) showEmptiness();
}

function clearLive() {
  announced = { count: null, at: 0 };
  setText($("visitors-now"), "–");
  setText($("active-note"), "");
  setText($("active-count"), "");
  $("pages-now").replaceChildren();
  $("active").replaceChildren();
  $("active-nothing").hidden = true;
  $("minutes").classList.add("blank");
  document.title = "LiveInsight";
}

function showRealtime(answer) {
  realtime = answer;
  const people = count(answer.visitors_now);
  setText($("visitors-now"), people);
  setText($("active-note"), `${count(answer.active_sessions)} within 30 minutes`);
  document.title = `${people} now · ${clip(view.site, 64)} · LiveInsight`;
  announce(answer.visitors_now);
  const points = answer.minutes.map((minute) => ({
    at: at(minute.minute), values: [minute.page_views, Math.max(0, minute.events - minute.page_views)],
  }));
  $("minutes").classList.remove("blank");
  minuteBars.show({
    points,
    describe: (index) => [
      clock(points[index].at),
      [count(points[index].values[0]), "page views"],
      [count(points[index].values[1]), "other events"],
    ],
  });
  const rows = answer.top_pages.slice(0, 5).map(({ page, visitors }) => ({ label: String(page), amount: visitors }));
  showBars($("pages-now"), rows, { page: true, nothing: "Nobody is reading right now." });
}

/** A screen reader hears the number when it changes, but not every two seconds. */
function announce(visitors) {
  if (visitors === announced.count || Date.now() - announced.at < ANNOUNCE_MS) return;
  announced = { count: visitors, at: Date.now() };
  setText($("visitors-announced"), `${counted(visitors, "visitor")} now`);
}

function showActive(answer) {
  const sessions = answer.results ?? answer;
  const total = Math.max(realtime?.active_sessions ?? 0, sessions.length);
  setText($("active-count"), total > sessions.length ? `${count(sessions.length)} of ${count(total)}` : count(total));
  $("active-nothing").hidden = sessions.length > 0;
  keyed($("active"), inHeldOrder(sessions), (session) => session.session_id, sessionRow, updateSessionRow);
  showAges();
}

/** While the pointer moves over the list, rows keep their places: nobody should click what has just slid in. */
function inHeldOrder(sessions) {
  const held = Date.now() < heldUntil;
  setText($("active-order"), held ? "order held while you point" : "newest first");
  if (!held) return sessions;
  const places = new Map([...$("active").children].map((row, place) => [row.dataset.key, place]));
  const place = (session) => places.get(session.session_id) ?? Infinity;
  return sessions.toSorted((one, other) => (place(one) === place(other) ? 0 : place(one) - place(other)));
}

function sessionRow() {
  const title = element("button", { type: "button", class: "title data" });
  const page = element("span", { class: "path data" });
  const row = element("tr", {}, element("td", { class: "page" }, title, page));
  for (const kind of ["second", "second", "third device", "number third", "number", "number age"]) {
    row.append(element("td", { class: `${kind} data` }));
  }
  title.addEventListener("click", () => openSession(row.dataset.key));
  row.addEventListener("click", (event) => {
    if (event.target !== title) title.click();
  });
  return row;
}

function updateSessionRow(row, session) {
  const [page, source, where, device, pages, lasted, age] = row.children;
  const [title, path] = page.children;
  setText(title, clip(session.current_title || pageLabel(session.current_page) || "No page view yet"));
  setText(path, session.current_title ? pageLabel(session.current_page) : "");
  setTitle(page, clip(session.current_page || ""));
  setText(source, clip(session.source || "Direct"));
  setText(where, country(session.country));
  setText(device, joined(session.device, session.browser) || "–");
  setText(pages, count(session.page_views));
  setText(lasted, duration(session.duration));
  age.dataset.at = at(session.last_activity);
  row.classList.toggle("converted", session.conversions > 0);
}

function showAges() {
  for (const cell of document.querySelectorAll(".age")) {
    const since = Number(cell.dataset.at);
    setText(cell, Number.isFinite(since) ? ago(Math.max(0, now() - since)) : "–");
  }
}

// ---------------------------------------------------------------- statistics of the stretch

const timeChart = new TimeChart($("chart"), "Events, page views and sessions over time");
const SERIES = [
  { label: "Events", unit: "events", field: "count", style: "soft", shown: true },
  { label: "Page views", unit: "page views", field: "page_views", style: "accent", shown: true },
  { label: "Sessions", unit: "sessions", field: "sessions", style: "plain", shown: true },
];
let rounds = 0;
let steps = null;

async function askStatistics(signal) {
  stretch = stretchOf(view);
  const { from, to } = stretch;
  const parameters = { site: view.site, from: new Date(from).toISOString(), to: new Date(to).toISOString() };
  const list = { ...parameters, limit: LIST_LENGTH };
  const requests = [
    { panel: "summary", path: "/api/statistics/summary/", parameters, show: showSummary },
    {
      panel: "pages", path: "/api/statistics/pages/", parameters: list,
      show: (answer) => showRows("pages", answer.map(({ page, views }) => [page, views])),
    },
    ...["referrers", "sources", "devices"].map((name) => ({
      panel: name, path: `/api/statistics/${name}/`, parameters: list,
      show: ({ labels, data }) => showRows(name, labels.map((label, index) => [label, data[index]])),
    })),
  ];
  const fits = to - from <= CHART_LONGEST;
  // Two thousand steps are much to ask for every 5 s, and hardly change.
  const large = (to - from) / STEP > MOST_POINTS;
  if (fits && (!large || rounds % 6 === 0)) {
    requests.push({ panel: "chart", path: "/api/statistics/hourly/", parameters, show: showSteps });
  }
  if (!fits) showNoChart();
  await fill(requests, signal);
  if (signal.aborted) return;
  rounds += 1;
  $("summary").classList.remove("pending");
  $("panels").classList.remove("pending");
  showEmptiness();
}

function clearFigures() {
  steps = null;
  $("chart").classList.add("blank");
  for (const figure of $("summary").querySelectorAll("dd:not(.note)")) setText(figure, "–");
  for (const id of ["visitors-note", "sessions-note", "page-views-note", "conversions-note"]) setText($(id), "");
  for (const id of ["pages", "referrers", "sources", "devices"]) $(id).replaceChildren();
}

function showSummary(answer) {
  summary = answer;
  const { from, to } = { from: at(answer.from), to: at(answer.to) };
  const title = PRESETS[view.range]?.label;
  setText($("summary-title"), title ? title[0].toUpperCase() + title.slice(1) : "Chosen stretch");
  setText($("range-text"), `${moment(from, now())} – ${to > now() ? "now" : moment(to, now())}`);
  const rough = !answer.visitors_exact && answer.visitors_error > 0;
  setText($("visitors"), count(answer.visitors));
  const error = count(Math.max(1, Math.round(answer.visitors * answer.visitors_error)));
  setText($("visitors-note"), rough ? `± ${error} (${percent(answer.visitors_error)})` : "exact");
  setTitle($("visitors-note"), rough ? "An estimate, with its standard error" : "");
  setText($("sessions"), count(answer.total_sessions));
  setText($("sessions-note"), `${count(answer.active_now)} active now`);
  setText($("page-views"), count(answer.page_views));
  setText($("page-views-note"), answer.total_sessions > 0 ? `${answer.pages_per_session.toFixed(1)} per session` : "");
  setText($("events"), count(answer.total_events));
  const sessions = answer.total_sessions > 0;
  setText($("bounce-rate"), sessions ? percent(answer.bounce_rate) : "–");
  setText($("average-time"), sessions ? duration(answer.avg_session_time) : "–");
  setText($("conversions"), count(answer.conversions));
  const values = Object.entries(answer.conversion_values ?? {}).map(([currency, value]) => money(value, currency));
  setText($("conversions-note"), values.slice(0, 2).join(" · ") + (values.length > 2 ? " …" : ""));
  setTitle($("conversions-note"), values.join(" · "));
  setText($("conversion-rate"), sessions ? percent(answer.conversion_rate) : "–");
}

function showRows(name, rows) {
  const whole = name === "pages" ? summary?.page_views : summary?.total_sessions;
  const list = rows.map(([label, amount]) => ({ label: String(label), amount }));
  showBars($(name), list, { page: name === "pages", whole, nothing: "Nothing in this stretch of time." });
}

/** A list of labels with bars. `page`: labels are pages; `whole`: what all rows are a share of, if known. */
function showBars(listNode, rows, { page = false, whole = 0, nothing }) {
  const rest = ({ label }) => label === "(other)";
  const most = Math.max(1, ...rows.filter((row) => !rest(row)).map((row) => row.amount));
  const items = rows.length ? rows : [{ label: "\u0000nothing", amount: null }];
  const create = (row) => {
    if (row.amount === null) return element("li", { class: "nothing", text: nothing });
    const text = page ? pageLabel(row.label) : clip(row.label);
    const label = page ? link(row.label, text) : element("span", { class: "data", text: text || "Unknown" });
    label.classList.add("label");
    if (!label.title) label.title = text;
    return element("li", { class: rest(row) ? "rest" : null },
      element("span", { class: "fill", "aria-hidden": "true" }), label,
      element("span", { class: "share" }), element("span", { class: "amount" }));
  };
  keyed(listNode, items, (row) => row.label, create, (node, row) => {
    if (row.amount === null) return;
    const [fillNode, , shareNode, amountNode] = node.children;
    fillNode.style.width = `${Math.min(100, (row.amount / most) * 100)}%`;
    setText(amountNode, count(row.amount));
    setText(shareNode, whole >= row.amount && whole > 0 ? roundPercent(row.amount / whole) : "");
  });
}

function showSteps(answer) {
  steps = answer.map((step) => ({ at: at(step.hour), values: SERIES.map(({ field }) => step[field] ?? 0) }));
  drawSteps();
}

function drawSteps() {
  if (!steps) return;
  const byHour = steps.length > MOST_POINTS;
  const step = byHour ? HOUR : STEP;
  const begun = steps.filter((one) => one.at <= now());
  const points = byHour ? hours(begun) : begun;
  const open = points.length > 0 && points.at(-1).at + step > now();
  $("chart").classList.remove("pending", "blank");
  $("chart").hidden = false;
  $("chart-note").hidden = true;
  setText($("chart-step"), byHour ? "by the hour" : "in steps of 5 minutes");
  timeChart.show({
    points, step, open, series: SERIES,
    from: points[0]?.at ?? stretch.from,
    to: (points.at(-1)?.at ?? stretch.to - step) + step,
    describe: (index) => {
      const { at: start, values } = points[index];
      const sofar = open && index === points.length - 1 ? ", so far" : "";
      return [
        `${moment(start, now())} – ${clock(start + step)}${sofar}`,
        ...SERIES.flatMap(({ unit, shown }, place) => (shown ? [[count(values[place]), unit]] : [])),
      ];
    },
  });
}

/** Steps summed by local hour. */
function hours(all) {
  const sums = new Map();
  for (const one of all) {
    const hour = one.at - new Date(one.at).getMinutes() * MINUTE;
    const sum = sums.get(hour);
    if (sum) one.values.forEach((value, place) => { sum[place] += value; });
    else sums.set(hour, [...one.values]);
  }
  return [...sums].map(([hour, values]) => ({ at: hour, values }));
}

function showNoChart() {
  steps = null;
  $("chart").hidden = true;
  setText($("chart-step"), "");
  $("chart-note").hidden = false;
  setText($("chart-note"), "The chart shows 7 days at most. Figures and lists are of the whole stretch.");
  setProblem("chart", "");
}

function showSeries() {
  keyed($("series"), SERIES, (one) => one.field, (one) => {
    const key = element("i", { class: `key line ${one.style}` });
    const button = element("button", { type: "button", class: "toggle" }, key, one.label);
    button.addEventListener("click", () => {
      if (one.shown && SERIES.filter((other) => other.shown).length === 1) return; // an empty chart tells nothing
      one.shown = !one.shown;
      showSeries();
      drawSteps();
    });
    return button;
  }, (button, one) => button.setAttribute("aria-pressed", one.shown));
}

// ---------------------------------------------------------------- empty, stale, broken

function showEmptiness() {
  const empty = summary !== null && realtime !== null && summary.total_events === 0 && realtime.active_sessions === 0;
  if (empty && $("empty").hidden) learnSites().then(describeEmptiness);
  if (empty) describeEmptiness();
  $("empty").hidden = !empty;
}

function describeEmptiness() {
  const known = sites.includes(view.site);
  const site = clip(view.site, 64);
  setText($("empty-title"), known ? `Nothing from ${site} in this stretch of time` : `No data from ${site} yet`);
  setText($("empty-text"), known
    ? "Choose a longer range, or other dates. If there should be something now, see that each page has the tracker:"
    : "As soon as a page with the tracker is opened, its visitor appears here. To install it:");
  const attribute = view.site.replaceAll("&", "&amp;").replaceAll('"', "&quot;").replaceAll("<", "&lt;");
  const source = "https://YOUR-COLLECTOR/liveinsight.js";
  setText($("install-line"), `<script async src="${source}" data-site="${attribute}"></script>`);
}

/** The line that says how old the figures are, and the notice when they cannot be had. Runs every second. */
function showFreshness() {
  const pollers = [live, statistics];
  const failing = pollers.filter((poller) => poller.error);
  const ages = pollers.map((poller) => (poller.succeededAt === null ? null : Date.now() - poller.succeededAt));
  const oldest = ages.includes(null) ? null : Math.max(...ages);
  const latest = Math.max(...[summary?.as_of, realtime?.as_of].map(at).filter(Number.isFinite), -Infinity);
  $("freshness").dataset.state = failing.length ? "failing" : oldest === null ? "loading" : "live";
  const never = failing.length ? "Not updating" : "Loading";
  setText($("updated"), oldest === null ? never : `Updated ${ago(oldest)}`);
  setText($("latest"), Number.isFinite(latest) ? `latest event ${ago(Math.max(0, now() - latest))}` : "");
  $("outage").hidden = failing.length === 0;
  if (failing.length) {
    const [{ error }] = failing;
    setText($("outage-cause"), error instanceof ApiError ? error.message : NOT_AS_AGREED);
    const shown = Math.max(...failing.map((poller) => poller.succeededAt ?? -Infinity));
    setText($("outage-consequence"), Number.isFinite(shown)
      ? `What you see is from ${clockSeconds(shown)}. The dashboard keeps trying.`
      : "There are no figures to show yet. The dashboard keeps trying.");
  }
  showAges();
}

// ---------------------------------------------------------------- one session

let opened = null;
const follower = new Poller(askSession, () => LIVE_MS);

function openSession(id) {
  opened = { id, ended: false };
  setText($("session-title"), "Session");
  setText($("session-state"), "Loading");
  setText($("session-count"), "");
  setProblem("session", "");
  $("session-facts").replaceChildren();
  $("session-events").replaceChildren();
  $("session").showModal();
  $("session").scrollTop = 0;
  follower.failures = 0;
  follower.restart();
}

async function askSession(signal) {
  const path = `/api/sessions/${encodeURIComponent(opened.id)}/`;
  const parameters = { site: view.site };
  try {
    const [session, events] = await Promise.all(
      [path, `${path}events/`].map((one) => ask(one, parameters, signal)),
    );
    if (signal.aborted) return;
    showSession(session);
    showEvents(events.results ?? events);
    setProblem("session", "");
  } catch (error) {
    const problem = error.status === 404 ? "This session is no longer kept." : `Not up to date. ${error.message}`;
    if (!signal.aborted) setProblem("session", problem);
    throw error;
  }
}

function showSession(session) {
  const active = session.active ?? now() - at(session.last_activity) < 30 * MINUTE;
  const converted = session.conversions > 0 && counted(session.conversions, "conversion");
  setText($("session-title"), clip(session.current_title || pageLabel(session.current_page) || "Session"));
  const channel = session.channel === session.source?.toLowerCase() ? "" : session.channel;
  const views = counted(session.page_views, "page view");
  setText($("session-state"), joined(active ? "Active" : "Ended", duration(session.duration), views, converted));
  const campaign = Object.entries(session.utm ?? {}).filter(([, value]) => value).map((pair) => pair.join(": "));
  const values = Object.entries(session.conversion_values ?? {}).map(([currency, value]) => money(value, currency));
  const facts = [
    ["Began", moment(at(session.started_at), now())],
    ["Source", joined(session.source || "Direct", channel)],
    ["Referrer", session.referrer],
    ["Campaign", campaign.join(", ")],
    ["Landed on", session.landing_url || session.entry_page],
    ["Now on", session.current_page],
    ["Scrolled", session.scroll_depth ? `${count(session.scroll_depth)} %` : ""],
    ["Conversions worth", values.join(", ")],
    ["From", joined(session.country && country(session.country), session.language)],
    ["Device", joined(session.device, session.browser, session.os)],
    ["Visitor", session.user_id],
    ["Session", session.session_id],
  ].filter(([, value]) => value);
  keyed($("session-facts"), facts, ([name]) => name,
    ([name]) => element("div", {}, element("dt", { text: name }), element("dd", { class: "data" })),
    (node, [, value]) => {
      const [, place] = node.children;
      if (place.textContent === clip(value)) return;
      place.replaceChildren(link(value, clip(value)));
    });
}

/** What is there of the parts, as one line. */
function joined(...parts) {
  return parts.filter(Boolean).map((part) => clip(part, 80)).join(" · ");
}

function showEvents(all) {
  const events = folded(all.slice(-MOST_EVENTS));
  const part = all.length > MOST_EVENTS ? `last ${count(MOST_EVENTS)} of ` : "";
  setText($("session-count"), part + counted(all.length, "event"));
  keyed($("session-events"), events, ({ event }) => event.event_id, eventItem, updateEventItem);
}

/** Heartbeats in a row say one thing: still here. */
function folded(events) {
  const entries = [];
  for (const event of events) {
    const before = entries.at(-1);
    if (event.event_type === "heartbeat" && before?.event.event_type === "heartbeat") {
      before.times += 1;
      before.until = event.timestamp;
    } else entries.push({ event, times: 1, until: event.timestamp });
  }
  return entries;
}

const EVENT_NAMES = new Map(Object.entries({
  page_view: "Page view",
  click: "Click",
  conversion: "Conversion",
  heartbeat: "Still on the page",
  page_exit: "Left the page",
  scroll: "Scrolled",
}));

function eventItem({ event }) {
  const kind = EVENT_NAMES.has(event.event_type) ? event.event_type : "custom";
  const name = EVENT_NAMES.get(event.event_type) ?? clip(event.event_type, 64);
  const what = element("p", { class: "what" }, element("b", { class: "data", text: name }));
  const item = element("li", { "data-kind": kind },
    element("time", { datetime: new Date(at(event.timestamp)).toISOString(), text: clockSeconds(at(event.timestamp)) }),
    element("div", {}, what));
  const body = item.lastElementChild;
  const line = (node) => body.append(element("p", { class: "detail" }, node));
  if (event.event_type === "page_view") {
    if (event.title) line(element("span", { class: "data", text: clip(event.title) }));
    line(link(event.page_url, pageLabel(event.page_url)));
    if (event.referrer) line(element("span", { class: "data muted", text: `from ${clip(event.referrer)}` }));
  }
  if (event.element) {
    const { id, tag, text, href } = event.element;
    const target = text ? `“${text}”` : [tag, id && `#${id}`].filter(Boolean).join("");
    line(element("span", { class: "data", text: clip(target) }));
    if (href) line(link(href, clip(href)));
  }
  if (event.conversion) {
    const { type, value, currency } = event.conversion;
    const worth = typeof value === "number" ? ` · ${currency ? money(value, currency) : count(value)}` : "";
    line(element("span", { class: "data", text: `${clip(type)}${worth}` }));
  }
  const properties = Object.entries(event.properties ?? {})
    .map(([property, value]) => `${property}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
  if (properties.length) line(element("span", { class: "data muted", text: clip(properties.join(", ")) }));
  what.append(element("span", { class: "muted times" }));
  return item;
}

function updateEventItem(item, { event, times, until }) {
  const lasted = times > 1 ? ` ${count(times)} times, for ${duration((at(until) - at(event.timestamp)) / 1000)}` : "";
  setText(item.querySelector(".times"), lasted);
}

// ---------------------------------------------------------------- controls

const THEME = "liveinsight-theme";
const systemDark = matchMedia("(prefers-color-scheme: dark)");

/** Storage may be forbidden; then a theme lasts as long as the page. */
const remembered = (action) => {
  try {
    return action(localStorage);
  } catch {
    return null;
  }
};

function showTheme(chosen) {
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
  const dark = (document.documentElement.dataset.theme ?? (systemDark.matches ? "dark" : "light")) === "dark";
  setText($("theme"), dark ? "Light" : "Dark");
  $("theme").setAttribute("aria-label", dark ? "Switch to the light theme" : "Switch to the dark theme");
  return dark;
}

/** ms as the value of a datetime-local input, in local time. */
function localInput(ms) {
  const pad = (value) => String(value).padStart(2, "0");
  const date = new Date(ms);
  const year = String(date.getFullYear()).padStart(4, "0");
  return `${year}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}T${pad(date.getHours())}:${pad(date.getMinutes())}`;
}

function useCustomRange(event) {
  event.preventDefault();
  const [from, to] = [$("custom-from"), $("custom-to")].map((input) => new Date(input.value).getTime());
  const problem = Number.isNaN(from) || Number.isNaN(to) ? "Give both dates with their times."
    : from >= to ? "“From” must be before “To”."
    : to - from > QUERY_LONGEST ? "A range covers at most 366 days." : "";
  setText($("custom-problem"), problem);
  if (!problem) goTo({ range: "custom", from, to });
}

function connectControls() {
  showTheme(remembered((storage) => storage.getItem(THEME)));
  systemDark.addEventListener("change", () => showTheme());
  $("theme").addEventListener("click", () => {
    const chosen = showTheme() ? "light" : "dark";
    showTheme(chosen);
    remembered((storage) => storage.setItem(THEME, chosen));
  });
  $("site").addEventListener("change", () => goTo({ site: $("site").value }));
  $("ranges").addEventListener("change", (event) => {
    if (event.target.value !== "custom") {
      goTo({ range: event.target.value });
      return;
    }
    const { from, to } = stretchOf(view);
    $("custom-from").value = localInput(from);
    $("custom-to").value = localInput(Math.min(to, now()));
    $("custom").hidden = false;
    $("custom-from").focus();
  });
  $("custom").addEventListener("submit", useCustomRange);
  $("retry").addEventListener("click", refresh);
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("install-line").textContent);
      setText($("copy"), "Copied");
    } catch {
      getSelection().selectAllChildren($("install-line"));
      setText($("copy"), "Selected: press Ctrl+C");
    }
    setTimeout(() => setText($("copy"), "Copy"), 3_000);
  });
  $("session-close").addEventListener("click", () => $("session").close());
  $("session").addEventListener("click", (event) => {
    const backdrop = event.clientX > 0 && event.clientX < $("session").getBoundingClientRect().left;
    if (backdrop) $("session").close();
  });
  $("session").addEventListener("close", () => {
    opened = null;
    follower.stop();
  });
  $("active").addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse") heldUntil = Date.now() + HOLD_MS;
  });
  $("active").addEventListener("pointerleave", () => { heldUntil = 0; });
  addEventListener("popstate", () => {
    const before = view.site;
    view = viewOfUrl();
    view.site ??= before;
    showView(view.site !== before);
  });
  document.addEventListener("visibilitychange", refresh);
  addEventListener("online", refresh);
}

function refresh() {
  live.restart();
  statistics.restart();
  if (opened) follower.restart();
  showFreshness();
}

const live = new Poller(askLive, () => LIVE_MS);
const isOver = () => stretch !== null && stretch.to < now() - HOUR;
const statistics = new Poller(askStatistics, () => (isOver() ? CLOSED_RANGE_MS : STATISTICS_MS));

async function start() {
  connectControls();
  showSeries();
  setText($("timezone"), `All times are in ${timezone(now())}.`);
  view = viewOfUrl();
  showControls();
  await learnSites();
  view.site ??= await likelySite();
  history.replaceState(null, "", urlOfView());
  showSites();
  live.restart();
  statistics.restart();
  setInterval(showFreshness, 1_000);
  setInterval(() => { if (!document.hidden) learnSites(); }, SITES_MS);
}

start();
