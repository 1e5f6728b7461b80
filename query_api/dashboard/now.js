// The card of this very moment: visitors now, the last 30 minutes, and what is being read.

import { MinuteBars } from "./chart.js";
import { labelText } from "./dimensions.js";
import { $, element, keyed, setText } from "./dom.js";
import { at, clip, clock, count } from "./format.js";
import { t } from "./language.js";
import { isFiltered, toggleFilter, view } from "./view.js";

const ANNOUNCE_MS = 15_000;
const PAGES = 5;

let bars = null;
let announced = { count: null, at: 0 };
let pages = [];

export function buildNow() {
  bars = new MinuteBars($("minutes"), t("minutesName"));
}

export function clearNow() {
  announced = { count: null, at: 0 };
  setText($("visitors-now"), "–");
  setText($("active-note"), "");
  pages = [];
  $("pages-now").replaceChildren();
  $("pages-now-nothing").hidden = true;
  $("minutes").classList.add("blank");
  document.title = "LiveInsight";
}

export function showNow(answer) {
  const people = count(answer.visitors_now);
  setText($("visitors-now"), people);
  setText($("active-note"), t("activeSessions", { count: answer.active_sessions }));
  document.title = `${t("titleNow", { people })} · ${clip(view.site, 64)} · LiveInsight`;
  announce(answer.visitors_now);
  const points = answer.minutes.map((minute) => ({
    at: at(minute.minute), values: [minute.page_views, Math.max(0, minute.events - minute.page_views)],
  }));
  $("minutes").classList.remove("blank");
  bars.show({
    points,
    describe: (index) => [
      clock(points[index].at),
      [count(points[index].values[0]), t("metric_page_views")],
      [count(points[index].values[1]), t("otherEvents")],
    ],
  });
  pages = answer.top_pages.slice(0, PAGES);
  showPagesNow();
}

/** A screen reader hears the number when it changes, but not every second. */
function announce(visitors) {
  if (visitors === announced.count || Date.now() - announced.at < ANNOUNCE_MS) return;
  announced = { count: visitors, at: Date.now() };
  setText($("visitors-announced"), t("visitorsNow", { count: visitors }));
}

export function showPagesNow() {
  const most = Math.max(1, ...pages.map(({ visitors }) => visitors));
  $("pages-now-nothing").hidden = pages.length > 0;
  keyed($("pages-now"), pages, ({ page }) => page, ({ page }) => {
    const text = labelText("page", String(page));
    const button = element("button", { type: "button", class: "row" },
      element("span", { class: "fill", "aria-hidden": "true" }),
      element("span", { class: "label data", text, title: text }),
      element("span", { class: "amount" }));
    button.addEventListener("click", () => toggleFilter("page", String(page)));
    return element("li", {}, button);
  }, (node, { page, visitors }) => {
    const [button] = node.children;
    button.firstElementChild.style.width = `${(visitors / most) * 100}%`;
    setText(button.lastElementChild, count(visitors));
    button.setAttribute("aria-pressed", String(isFiltered("page", String(page))));
  });
}
