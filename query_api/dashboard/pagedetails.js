// More of the page that the dashboard is filtered to: the sessions that began or ended there, and who is on it now.

import { METRICS, figure, labelText } from "./dimensions.js";
import { $, element, keyed, setText } from "./dom.js";
import { showEvents } from "./events.js";
import { t } from "./language.js";
import { view } from "./view.js";

const FIGURES = ["sessions", "bounce_rate", "avg_session_time", "pages_per_session", "conversion_rate"];

export const isPageShown = () => view.filter?.dimension === "page";

export function clearPageDetails() {
  $("page-details").hidden = !isPageShown();
  if (!isPageShown()) return;
  setText($("page-details-title"), t("pageDetails", { page: labelText("page", view.filter.label) }));
  for (const id of ["page-entries", "page-exits", "page-events"]) $(id).replaceChildren();
  setText($("page-events-nothing"), t("loading"));
  $("page-events-nothing").hidden = false;
}

export function showPageDetails({ entries, exits, recent_events: events }) {
  showFigures($("page-entries"), entries);
  showFigures($("page-exits"), exits);
  setText($("page-events-nothing"), t("nobodyOnPage"));
  $("page-events-nothing").hidden = events.length > 0;
  showEvents($("page-events"), events);
}

function showFigures(list, figures) {
  const there = FIGURES.filter((name) => METRICS[name] && typeof figures?.[name] === "number");
  keyed(list, there, (name) => name,
    (name) => element("div", {}, element("dt", { text: t(`metric_${name}`) }), element("dd")),
    (node, name) => {
      const none = name !== "sessions" && figures.sessions === 0;
      setText(node.lastElementChild, none ? "–" : figure(name, figures[name]));
    });
}
