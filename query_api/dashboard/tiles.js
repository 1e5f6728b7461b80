// The figures of the range. Each tile is a switch for its line in the chart as well.

import { $, element, keyed, setText, setTitle } from "./dom.js";
import { DIMENSIONS, METRICS, OF_SESSIONS, figure } from "./dimensions.js";
import { change, clip, count, moneys, percent } from "./format.js";
import { t } from "./language.js";
import { choices, keepChoices, stretch, view } from "./view.js";
import { zone } from "./zone.js";

const LONGEST_LOCAL_VISITORS = 92 * 86_400_000;

const NAMES = Object.keys(METRICS);

/** The metrics that the filter's dimension has; without a filter all. */
export const available = () => (view.filter ? DIMENSIONS[view.filter.dimension].metrics : NAMES);

/** Distinct visitors are kept by the day of UTC: the API counts them by other days for some weeks only. */
export function noVisitorsByDay() {
  const range = stretch();
  return zone() !== "UTC" && range.to - range.from > LONGEST_LOCAL_VISITORS && choices.lines.includes("visitors");
}

/** The lines to draw: those chosen that there are, else the first metric that there is. */
export function linesShown() {
  const there = available().filter((name) => METRICS[name] && !(name === "visitors" && noVisitorsByDay()));
  const lines = choices.lines.filter((name) => there.includes(name));
  return lines.length ? lines : there.slice(0, 1);
}

/** `changed()` is called when other lines are chosen. */
export function buildTiles(changed) {
  keyed($("tiles"), NAMES, (name) => name, (name) => {
    const button = element("button", { type: "button", class: "tile-switch", "aria-pressed": "false" },
      element("i", { class: "key line", "aria-hidden": "true" }), t(`metric_${name}`));
    button.addEventListener("click", () => {
      toggleLine(name);
      changed();
    });
    return element("div", { class: "tile", "data-metric": name },
      element("dt", {}, button),
      element("dd", { class: "value", text: "–" }),
      element("dd", { class: "change" }),
      element("dd", { class: "note" }));
  });
}

/** Lines of another unit would need another scale: they take the place of those there were. */
function toggleLine(name) {
  const lines = linesShown();
  const alike = lines.filter((one) => METRICS[one].unit === METRICS[name].unit);
  if (!lines.includes(name)) choices.lines = [...alike, name];
  else if (lines.length > 1) choices.lines = lines.filter((one) => one !== name);
  keepChoices();
  showLines();
}

export function showLines() {
  const lines = linesShown();
  const there = available();
  for (const tile of $("tiles").children) {
    const name = tile.dataset.metric;
    const button = tile.querySelector("button");
    button.setAttribute("aria-pressed", String(lines.includes(name)));
    button.disabled = !there.includes(name);
    tile.querySelector(".key").className = `key line ${METRICS[name].style}`;
  }
}

export function clearTiles() {
  for (const tile of $("tiles").children) {
    const [, value, changed, note] = tile.children;
    setText(value, "–");
    for (const node of [changed, note]) setText(node, "");
    setTitle(note, "");
  }
}

/**
 * `figures`: by metric; `previous`: the same of the period before, or null. `rough`: the standard error of the visitors
 * where they are estimated.
 */
export function showTiles(figures, previous, { rough = null, activeNow = null } = {}) {
  const there = available();
  const nobody = figures.sessions === 0;
  for (const tile of $("tiles").children) {
    const name = tile.dataset.metric;
    const [, value, changed, note] = tile.children;
    const kept = there.includes(name);
    const none = !kept || (nobody && OF_SESSIONS.has(name));
    setText(value, none ? "–" : figure(name, figures[name]));
    const before = kept && previous && !(previous.sessions === 0 && OF_SESSIONS.has(name)) ? previous[name] : undefined;
    showChange(changed, none ? "" : change(figures[name], before), previous && kept, before, name);
    const [text, title] = kept ? noteOf(name, figures, rough, activeNow) : [t("notKept"), t("notKeptWhy")];
    setText(note, text);
    setTitle(note, title);
    tile.classList.toggle("absent", !kept);
  }
}

function showChange(node, text, compared, before, name) {
  const told = before === undefined ? "" : t("wasBefore", { figure: figure(name, before) });
  setTitle(node, text ? told : "");
  node.replaceChildren(...(text ? [text, element("span", { class: "unseen", text: `, ${told}` })] : []));
  if (!text && compared && before === 0) node.textContent = told;
}

/** The small line under a figure, and what it says in full. */
function noteOf(name, figures, rough, activeNow) {
  if (name === "visitors" && rough) {
    const error = count(Math.max(1, Math.round(figures.visitors * rough)));
    return [t("plusMinus", { error, part: percent(rough) }), t("estimate")];
  }
  if (name === "sessions" && activeNow !== null) return [t("activeNow", { count: activeNow }), ""];
  if (name === "conversions") {
    const values = moneys(figures.conversion_values);
    return [values.slice(0, 2).join(" · ") + (values.length > 2 ? " …" : ""), clip(values.join(" · "))];
  }
  return ["", ""];
}
