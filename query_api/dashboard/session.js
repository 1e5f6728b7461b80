// One session in a drawer: what is known of it, and its events as they come.

import { ApiError, ask, now } from "./api.js";
import { labelText } from "./dimensions.js";
import { $, element, keyed, link, pageLabel, setProblem, setText } from "./dom.js";
import { eventCount, showEvents } from "./events.js";
import { at, clip, country, count, duration, joined, languageName, moment, moneys } from "./format.js";
import { t } from "./language.js";
import { Poller } from "./poller.js";
import { view } from "./view.js";

const FOLLOW_MS = 15_000; // beside what the live feed tells of
const AT_MOST_MS = 2_000;
const ACTIVE_MS = 30 * 60_000;

let opened = null;
let askedAt = 0;
const follower = new Poller(askSession, FOLLOW_MS, () => {});

export function buildSession() {
  const drawer = $("session");
  $("session-close").addEventListener("click", () => drawer.close());
  drawer.addEventListener("click", (event) => {
    const beside = event.clientX > 0 && event.clientX < drawer.getBoundingClientRect().left;
    if (beside) drawer.close();
  });
  drawer.addEventListener("close", () => {
    opened = null;
    follower.stop();
  });
}

export function openSession(id) {
  opened = id;
  setText($("session-title"), t("session"));
  setText($("session-state"), t("loading"));
  setText($("session-count"), "");
  setProblem($("session-problem"), "");
  $("session-facts").replaceChildren();
  $("session-events").replaceChildren();
  $("session").showModal();
  $("session").scrollTop = 0;
  follower.failures = 0;
  follower.restart();
}

export const closeSession = () => $("session").close();
export const restSession = () => (document.hidden || !opened ? follower.stop() : follower.restart());

/** The live feed has news: perhaps of the session that is open. */
export function sessionMoved() {
  if (opened && !follower.error && Date.now() - askedAt >= AT_MOST_MS) follower.restart();
}

async function askSession(signal) {
  askedAt = Date.now();
  const path = `/api/sessions/${encodeURIComponent(opened)}/`;
  try {
    const [session, events] = await Promise.all(
      [path, `${path}events/`].map((one) => ask(one, { site: view.site }, signal)),
    );
    if (signal.aborted) return;
    showSession(session.body);
    const all = events.body.results ?? events.body;
    setText($("session-count"), eventCount(all));
    showEvents($("session-events"), all);
    setProblem($("session-problem"), "");
  } catch (error) {
    if (signal.aborted) return;
    const why = error instanceof ApiError ? error.message : t("notAsAgreed");
    setProblem($("session-problem"), error.status === 404 ? t("sessionGone") : t("notUpToDate", { why }));
    setText($("session-state"), "");
    throw error;
  }
}

function showSession(session) {
  const active = session.active ?? now() - at(session.last_activity) < ACTIVE_MS;
  setText($("session-title"), clip(session.current_title || pageLabel(session.current_page) || t("session")));
  setText($("session-state"), joined(
    t(active ? "active" : "ended"), duration(session.duration), t("pageViews", { count: session.page_views }),
    session.conversions > 0 && t("conversions", { count: session.conversions }),
  ));
  const channel = session.channel === session.source?.toLowerCase() ? "" : labelText("channel", session.channel ?? "");
  const campaign = Object.entries(session.utm ?? {}).filter(([, value]) => value).map((pair) => pair.join(": "));
  const facts = [
    ["factBegan", moment(at(session.started_at), now())],
    ["tab_source", joined(labelText("source", session.source || "Direct"), channel)],
    ["tab_referrer", session.referrer],
    ["tab_campaigns", campaign.join(", ")],
    ["tab_entry_page", session.landing_url || session.entry_page],
    ["factNow", session.current_page],
    ["factScrolled", session.scroll_depth ? `${count(session.scroll_depth)}%` : ""],
    ["metric_conversion_values", moneys(session.conversion_values).join(", ")],
    ["factFrom", joined(session.country && country(session.country), session.language && languageName(session.language))],
    ["tab_device", joined(session.device && labelText("device", session.device), session.browser, session.os)],
    ["factVisitor", session.user_id],
    ["session", session.session_id],
  ].filter(([, value]) => value);
  keyed($("session-facts"), facts, ([name]) => name,
    ([name]) => element("div", {}, element("dt", { text: t(name) }), element("dd", { class: "data" })),
    (node, [, value]) => {
      const [, place] = node.children;
      if (place.textContent !== clip(value)) place.replaceChildren(link(value, clip(value)));
    });
}
