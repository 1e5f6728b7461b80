// The dashboard: brings together what is asked of the query API and what of the answers goes where.
//
// Two things run on their own: the live feed (who is here now) and the questions about the range. Every answer belongs
// to the view that asked for it; one that comes after the view changed is dropped.

import { ApiError, ask, now, takeKeyFromAddress } from "./api.js";
import { buildControls, knowsSite, setSites, showControls, showRange } from "./controls.js";
import { asOf } from "./dimensions.js";
import { $, setProblem } from "./dom.js";
import { buildEmptiness, showEmptiness } from "./emptiness.js";
import { showFreshness } from "./freshness.js";
import { buildKeyForm, hideKeyForm, showKeyForm } from "./keyform.js";
import { fillTexts } from "./language.js";
import { LiveFeed } from "./live.js";
import { buildNow, clearNow, showNow, showPagesNow } from "./now.js";
import { buildChart, chartParameters, clearChart, drawChart, showChart } from "./overtime.js";
import { clearPageDetails, isPageShown, showPageDetails } from "./pagedetails.js";
import { PANELS, Panel } from "./panels.js";
import { Question, Questions } from "./questions.js";
import { buildSession, closeSession, openSession, restSession, sessionMoved } from "./session.js";
import { buildSessions, clearSessions, showAges, showSessions, takeSessions } from "./sessions.js";
import { buildSettings } from "./settings.js";
import { SinceSummary } from "./sincesummary.js";
import { remember, remembered } from "./store.js";
import { buildTiles, clearTiles, showLines, showTiles } from "./tiles.js";
import { begin, choices, isOpen, onView, readAddress, stretch, view } from "./view.js";
import { zone } from "./zone.js";

const SITES_MS = 300_000;
const MOST_CANDIDATES = 4;
const HALF_DAY = 12 * 3_600_000;

let realtime = null;
let summary = null;
let labelTotals = null;
const since = new SinceSummary();

// ---------------------------------------------------------------- what is asked of the range

/** How often answers may be asked for anew (s): of ranges up to half a day, two days, a fortnight, and longer ones. */
const PACE = { summary: [5, 5, 10, 20], chart: [5, 10, 20, 60], panel: [8, 15, 30, 60] };

function pace(kind) {
  const { from, to } = stretch();
  const place = [HALF_DAY, 4 * HALF_DAY, 28 * HALF_DAY].findIndex((longest) => to - from <= longest);
  return PACE[kind].at(place) * 1000; // place -1: none of these, the last one
}

const range = () => {
  const { from, to } = stretch();
  return { site: view.site, from: new Date(from).toISOString(), to: new Date(to).toISOString(), tz: zone() };
};
const previous = () => (choices.compare ? { compare: "previous" } : undefined);
const open = () => isOpen(stretch());
const noted = (id) => (problem) => setProblem($(id), problem);
const dimmed = (...ids) => (flag) => ids.forEach((id) => $(id).classList.toggle("pending", flag));

const summaryQuestion = new Question({
  open,
  prompt: true,
  every: () => pace("summary"),
  make: () => (view.filter ? null : { path: "/api/statistics/summary/", parameters: range(), previous: previous() }),
  show: (answer) => {
    if (typeof answer.total_sessions !== "number") throw new TypeError("a summary without sessions");
    summary = answer;
    showSummary();
    for (const panel of panels) panel.setSessions(answer.total_sessions);
  },
  pending: dimmed("tiles"),
  problem: noted("summary-problem"),
});

const chartQuestion = new Question({
  open,
  every: () => pace("chart"),
  make: () => ({
    path: "/api/statistics/timeseries/", parameters: { ...range(), ...chartParameters() }, previous: previous(),
  }),
  show: (answer) => {
    showChart(answer);
    labelTotals = answer;
    showLabelTotals();
  },
  pending: (flag) => dimmed("chart", ...(view.filter ? ["tiles"] : []))(flag),
  problem: noted("chart-problem"),
});

const pageQuestion = new Question({
  open,
  every: () => pace("panel"),
  make: () => (isPageShown()
    ? { path: "/api/dashboard/page-details/", parameters: { ...range(), page: view.filter.label } } : null),
  show: showPageDetails,
  pending: dimmed("page-details-body"),
  problem: noted("page-details-problem"),
});

const panels = PANELS.map((name) => new Panel(name, range, () => questions.run()));
const panelQuestions = panels.map((panel) => new Question({
  open,
  every: () => pace("panel"),
  make: () => panel.make(),
  show: (answer) => panel.show(answer),
  pending: (flag) => panel.pending(flag),
  problem: (text) => setProblem(panel.problem, text),
  resting: () => !panel.visible,
}));

const questions = new Questions([summaryQuestion, chartQuestion, pageQuestion, ...panelQuestions], changed);
const live = new LiveFeed(takeRealtime, changed);

// ---------------------------------------------------------------- answers

function takeRealtime(answer) {
  realtime = answer;
  showNow(answer);
  takeSessions(answer);
  since.take(answer);
  if (summary && !view.filter && open()) showSummary();
  questions.moved(asOf(answer));
  sessionMoved();
  changed();
}

/** The summary in the words of the other answers, with what has come since. */
function showSummary() {
  const { visitors_exact: exact, visitors_error: error, active_now: activeNow } = summary;
  const more = open() ? since.count(asOf(summary)) : { events: 0, page_views: 0 };
  const figures = { ...named(summary) };
  figures.events += more.events;
  figures.page_views += more.page_views;
  showTiles(figures, choices.compare && summary.previous ? named(summary.previous) : null, {
    rough: !exact && error > 0 ? error : null,
    activeNow: open() ? realtime?.active_sessions ?? activeNow : null,
  });
}

/** With a filter the tiles show the figures of its label. */
function showLabelTotals() {
  if (view.filter) showTiles(labelTotals.totals, choices.compare ? labelTotals.previous?.totals : null);
}

const named = (figures) => ({ ...figures, sessions: figures.total_sessions, events: figures.total_events });

let locked = false;

/** Something was answered or failed: say how fresh the page is, whether it is empty, whether a key is wanted. */
function changed() {
  const refused = [live.error, questions.outage].find((error) => error instanceof ApiError && error.wantsKey);
  if (refused && !locked) lock(refused);
  showFreshness(live, questions, realtime);
  showRange();
  const empty = summary !== null && realtime !== null && !view.filter
    && summary.total_events === 0 && realtime.active_sessions === 0;
  if (empty && $("empty").hidden) learnSites().then(() => showEmptiness(true, knowsSite(view.site)));
  else showEmptiness(empty, knowsSite(view.site));
}

function lock(error) {
  locked = true;
  live.stop();
  questions.stop();
  showKeyForm(error);
}

async function unlock() {
  locked = false;
  for (const question of questions.questions) question.forget();
  await start();
}

// ---------------------------------------------------------------- the view

onView((before) => {
  const otherSite = before.site !== view.site;
  if (otherSite) {
    remember("site", view.site);
    realtime = null;
    clearNow();
    clearSessions();
    closeSession();
    if (locked) {
      locked = false;
      hideKeyForm();
    }
  }
  const otherFilter = JSON.stringify(before.filter) !== JSON.stringify(view.filter);
  if (otherSite || otherFilter) clearFigures(otherSite);
  showControls();
  showLines();
  showEmptiness(false, true);
  showPagesNow();
  showSessions();
  questions.renew({ forget: otherSite });
  if (otherSite) {
    since.clear();
    questions.newest = NaN;
    live.start(view.site);
    questions.start();
  }
});

/** Figures that belong to another site or label are not left to be taken for this one's. */
function clearFigures(all) {
  summary = null;
  labelTotals = null;
  summaryQuestion.forget();
  chartQuestion.forget();
  pageQuestion.forget();
  clearTiles();
  clearChart();
  clearPageDetails();
  for (const panel of panels) {
    if (all) panel.clear();
    panel.viewChanged();
  }
}

function refresh() {
  if (locked) return;
  if (document.hidden) {
    live.stop();
    questions.stop();
  } else {
    live.start(view.site);
    questions.renew();
    questions.start();
  }
  restSession();
  showFreshness(live, questions, realtime);
}

// ---------------------------------------------------------------- sites

async function learnSites() {
  try {
    const { body } = await ask("/api/sites/", {}, new AbortController().signal);
    const names = body.sites.map(String);
    setSites(names);
    return names;
  } catch (error) {
    if (error.wantsKey) throw error;
    if (!(error instanceof ApiError)) console.error(error);
    return []; // The figures fail as well then, and say so.
  }
}

/** Without a site in the address: the last one looked at, else the first where somebody is now, else the first. */
async function likelySite(names) {
  const before = remembered("site");
  if (names.includes(before)) return before;
  if (names.length < 2) return names[0] ?? "default";
  for (const site of names.slice(0, MOST_CANDIDATES)) {
    try {
      const { body } = await ask("/api/realtime/", { site }, new AbortController().signal);
      if (body.active_sessions > 0) return site;
    } catch (error) {
      if (error.wantsKey) throw error;
    }
  }
  return names[0];
}

// ---------------------------------------------------------------- start

function build() {
  takeKeyFromAddress();
  fillTexts();
  buildSettings(zoneChanged);
  buildControls(compared);
  buildTiles(linesChanged);
  buildChart();
  buildNow();
  buildSessions(openSession);
  buildSession();
  buildEmptiness();
  buildKeyForm(unlock);
  for (const panel of panels) {
    panel.clear();
    panel.showControls();
  }
  $("retry").addEventListener("click", refresh);
  document.addEventListener("visibilitychange", refresh);
  addEventListener("online", refresh);
  addEventListener("hashchange", () => {
    takeKeyFromAddress();
    if (locked) {
      hideKeyForm();
      unlock();
    }
  });
  setInterval(() => {
    showFreshness(live, questions, realtime);
    showAges();
  }, 1_000);
  setInterval(() => { if (!document.hidden && !locked) learnSites().catch(() => {}); }, SITES_MS);
}

function linesChanged() {
  drawChart();
  questions.run();
}

function compared() {
  drawChart();
  if (summary && !view.filter) showSummary();
  if (labelTotals) showLabelTotals();
  for (const question of [summaryQuestion, chartQuestion]) {
    question.giveUp();
    question.shownKey = null; // so that it is asked at once
  }
  questions.run();
}

function zoneChanged() {
  showControls();
  showLines();
  if (realtime) showNow(realtime);
  drawChart();
  questions.run(); // days begin at another moment, so the questions are others
}

async function start() {
  try {
    const names = await learnSites();
    begin(readAddress().site ?? await likelySite(names));
  } catch (error) {
    lock(error);
    return;
  }
  showControls();
  showLines();
  clearPageDetails();
  for (const panel of panels) panel.viewChanged();
  live.start(view.site);
  questions.start();
}

build();
start();
