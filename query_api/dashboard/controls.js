// The bar above the figures: site, range, comparison, and the filter with the button that takes it away.

import { now } from "./api.js";
import { labelText } from "./dimensions.js";
import { $, element, keyed, setText } from "./dom.js";
import { clip, moment, zoneText } from "./format.js";
import { t } from "./language.js";
import { LONGEST_RANGE, RANGES, choices, goTo, isOpen, keepChoices, stretch, view } from "./view.js";
import { fromInput, toInput } from "./zone.js";

let sites = [];

/** `compared()` is called when the comparison is switched. */
export function buildControls(compared) {
  keyed($("range-choices"), RANGES, (range) => range, (range) => element("label", {},
    element("input", { type: "radio", name: "range", value: range, autocomplete: "off" }),
    element("span", { text: t(`range_${range}`) })));
  $("site").addEventListener("change", () => goTo({ site: $("site").value }));
  $("ranges").addEventListener("change", (event) => chooseRange(event.target.value));
  $("custom").addEventListener("submit", useCustomRange);
  $("compare").checked = choices.compare;
  $("compare").addEventListener("change", () => {
    choices.compare = $("compare").checked;
    keepChoices();
    compared();
  });
  $("filter").addEventListener("click", () => {
    goTo({ filter: null });
    $("range-title").focus(); // the button is gone
  });
}

function chooseRange(range) {
  if (range !== "custom") {
    goTo({ range });
    return;
  }
  const { from, to } = stretch();
  $("custom-from").value = toInput(from);
  $("custom-to").value = toInput(Math.min(to, now()));
  setText($("custom-problem"), "");
  $("custom").hidden = false;
  $("custom-from").focus();
}

function useCustomRange(event) {
  event.preventDefault();
  const [from, to] = [$("custom-from"), $("custom-to")].map((input) => fromInput(input.value));
  const problem = Number.isNaN(from) || Number.isNaN(to) ? "giveBothDates"
    : from >= to ? "fromBeforeTo"
    : to - from > LONGEST_RANGE ? "rangeTooLong" : "";
  setText($("custom-problem"), problem && t(problem));
  if (!problem) goTo({ range: "custom", from, to });
}

export function showControls() {
  showSites();
  for (const radio of $("ranges").elements) if (radio.name === "range") radio.checked = radio.value === view.range;
  $("custom").hidden = view.range !== "custom";
  if (view.range === "custom") {
    $("custom-from").value = toInput(view.from);
    $("custom-to").value = toInput(view.to);
  }
  $("filter").hidden = !view.filter;
  if (view.filter) {
    const { dimension, label } = view.filter;
    const text = t("filterText", { dimension: t(`one_${dimension}`), label: clip(labelText(dimension, label), 80) });
    setText($("filter-text"), text);
    $("filter").setAttribute("aria-label", t("removeFilter", { filter: text }));
  }
  showRange();
}

/** The heading of the figures: which range, and whether it is over. */
export function showRange() {
  const { from, to } = stretch();
  setText($("summary-title"), t(`title_${view.range}`));
  const end = isOpen({ to }) ? t("now") : moment(to, now());
  setText($("range-text"), `${moment(from, now())} – ${end}`);
  $("partial").hidden = !isOpen({ to });
  setText($("timezone"), t("timesIn", { zone: zoneText(now()) }));
}

export function setSites(names) {
  sites = names;
  showSites();
}

export const knowsSite = (name) => sites.includes(name);

function showSites() {
  const names = view.site && !sites.includes(view.site) ? [view.site, ...sites] : sites;
  keyed($("site"), names, (name) => name, (name) => element("option", { value: name, text: clip(name, 64) }));
  $("site").value = view.site ?? "";
}
