// The active sessions: the newest from the live feed, older ones on request; with a filter those that match it.

import { ApiError, ask, now } from "./api.js";
import { DIMENSIONS, labelText } from "./dimensions.js";
import { $, element, keyed, pageLabel, setProblem, setText, setTitle } from "./dom.js";
import { ago, at, clip, count, country, duration, joined } from "./format.js";
import { t } from "./language.js";
import { view } from "./view.js";

const HOLD_MS = 3_000;
const ACTIVE_MS = 30 * 60_000;
const PAGE_SIZE = 100;

let newest = []; // as the live feed has them
let older = []; // as they were when they were asked for
let next = null; // the path of the next page; null before the first one, "" after the last one
let total = null;
let heldUntil = 0;
let asking = null;

/** `open(id)` shows one session. */
export function buildSessions(open) {
  $("active").addEventListener("pointermove", (event) => {
    if (event.pointerType === "mouse") heldUntil = Date.now() + HOLD_MS;
  });
  $("active").addEventListener("pointerleave", () => { heldUntil = 0; });
  $("active").addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (!row) return;
    row.querySelector(".title").focus();
    open(row.dataset.key);
  });
  $("active-more").addEventListener("click", askMore);
}

export function clearSessions() {
  asking?.abort();
  asking = null;
  newest = [];
  older = [];
  next = null;
  total = null;
  $("active").replaceChildren();
  setText($("active-count"), "");
  $("active-nothing").hidden = true;
  $("active-more").hidden = true;
  setProblem($("active-problem"), "");
}

export function takeSessions(answer) {
  newest = answer.sessions ?? [];
  total = Math.max(answer.active_sessions, newest.length);
  showSessions();
}

/** Cursors keep their place while sessions come; what a page repeats is left out by its id. */
async function askMore() {
  if (asking) return;
  const running = new AbortController();
  asking = running;
  try {
    const first = ["/api/sessions/active/", { site: view.site, page: 1, page_size: PAGE_SIZE }];
    const { body } = await ask(...(next ? [next, {}] : first), running.signal);
    if (running.signal.aborted) return;
    older.push(...body.results);
    next = body.next ?? "";
    setProblem($("active-problem"), "");
  } catch (error) {
    if (running.signal.aborted) return;
    if (!(error instanceof ApiError)) console.error(error);
    setProblem($("active-problem"), error instanceof ApiError ? error.message : t("notAsAgreed"));
  } finally {
    if (asking === running) asking = null;
  }
  showSessions();
}

export function showSessions() {
  if (total === null) return;
  const here = new Set(newest.map((session) => session.session_id));
  const lives = (session) => now() - at(session.last_activity) < ACTIVE_MS;
  const rest = older.filter((session) => !here.has(session.session_id) && lives(session));
  const all = [...newest, ...rest];
  const { filter } = view;
  const labelOf = filter && DIMENSIONS[filter.dimension].of;
  const shown = !filter ? all : labelOf ? all.filter((session) => (labelOf(session) ?? "") === filter.label) : [];
  if (!filter) setText($("active-count"), total > all.length ? t("someOf", { count: all.length, total }) : count(total));
  else setText($("active-count"), labelOf ? t("matching", { count: shown.length, total: all.length }) : "");
  $("active-nothing").hidden = shown.length > 0;
  const why = !filter ? t("nobodyHere")
    : labelOf ? t("nobodyMatches", { label: labelText(filter.dimension, filter.label) }) : t("sessionsDoNotTell");
  setText($("active-nothing"), why);
  $("active-scroll").hidden = shown.length === 0;
  $("active-more").hidden = next === "" || total <= all.length || Boolean(filter && !labelOf);
  keyed($("active"), inHeldOrder(shown), (session) => session.session_id, sessionRow, updateSessionRow);
  showAges();
}

/** While the pointer moves over the list, rows keep their places: nobody should click what has just slid in. */
function inHeldOrder(sessions) {
  const held = Date.now() < heldUntil;
  setText($("active-order"), t(held ? "orderHeld" : "newestFirst"));
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
  return row;
}

function updateSessionRow(row, session) {
  const [page, source, where, device, pages, lasted, age] = row.children;
  const [title, path] = page.children;
  setText(title, clip(session.current_title || pageLabel(session.current_page) || t("noPageYet")));
  setText(path, session.current_title ? pageLabel(session.current_page) : "");
  setTitle(page, clip(session.current_page || ""));
  setText(source, labelText("source", session.source || "Direct"));
  setText(where, country(session.country));
  setText(device, joined(session.device && labelText("device", session.device), session.browser) || "–");
  setText(pages, count(session.page_views));
  setText(lasted, duration(session.duration));
  age.dataset.at = at(session.last_activity);
  row.classList.toggle("converted", session.conversions > 0);
  title.dataset.converted = session.conversions > 0 ? t("converted") : "";
}

export function showAges() {
  for (const cell of $("active").querySelectorAll(".age")) {
    const since = Number(cell.dataset.at);
    setText(cell, Number.isFinite(since) ? ago(Math.max(0, now() - since)) : "–");
  }
}
