// The breakdown panels: a few cards, each with its dimensions as tabs, and rows that filter the dashboard.

import { ApiError, address, download, hasKey } from "./api.js";
import { DIMENSIONS, isPage, labelText } from "./dimensions.js";
import { $, element, keyed, link, setProblem, setText, webUrl } from "./dom.js";
import { count, decimal, moneys, roundPercent } from "./format.js";
import { t } from "./language.js";
import { isFiltered, toggleFilter, view } from "./view.js";

const LENGTHS = [10, 50, 200];

/** Cards and their tabs. A tab of several dimensions lets one of them be chosen. */
const CARDS = {
  pages: [["page"], ["entry_page"], ["exit_page"]],
  sources: [["channel"], ["source"], ["referrer"],
    ["utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content"]],
  places: [["country"], ["language"], ["device"], ["browser"], ["os"]],
  goals: [["conversion_type"], ["currency"], ["event_type"]],
};

const tabText = (dimensions) => t(dimensions.length > 1 ? "tab_campaigns" : `tab_${dimensions[0]}`);

export class Panel {
  /** `parameters()`: site and range; `changed()`: there is something else to ask for. */
  constructor(name, parameters, changed) {
    this.name = name;
    this.parameters = parameters;
    this.changed = changed;
    this.tabs = CARDS[name];
    this.dimension = this.tabs[0][0];
    this.length = LENGTHS[0];
    this.answer = null;
    this.sessions = null; // of the whole range, for rates
    this.visible = false;
    this.node = this.build();
    $("panels").append(this.node);
    new IntersectionObserver(([entry]) => {
      this.visible = entry.isIntersecting;
      if (this.visible) this.changed();
    }, { rootMargin: "200px" }).observe(this.node);
  }

  // -------------------------------------------------------------- what is asked

  /** Figures of other dimensions are not kept for one label: then nothing is asked. */
  get available() {
    return !view.filter || view.filter.dimension === this.dimension;
  }

  make() {
    if (!this.available) return null;
    const { metrics } = DIMENSIONS[this.dimension];
    return {
      path: "/api/statistics/breakdown/",
      parameters: {
        ...this.parameters(),
        dimension: this.dimension,
        metrics: metrics.includes("conversion_values") ? metrics.join() : metrics[0],
        limit: this.length,
      },
    };
  }

  csvAddress() {
    const { metrics } = DIMENSIONS[this.dimension];
    const parameters = { ...this.parameters(), dimension: this.dimension, metrics: metrics.join() };
    return address("/api/statistics/breakdown/", { ...parameters, format: "csv" });
  }

  // -------------------------------------------------------------- the card

  build() {
    const id = `panel-${this.name}`;
    const tabs = this.tabs.map((dimensions, place) => {
      const tab = element("button", {
        type: "button", role: "tab", id: `${id}-tab-${place}`, "aria-controls": `${id}-body`, text: tabText(dimensions),
      });
      tab.addEventListener("click", () => this.choose(dimensions[0]));
      return tab;
    });
    this.tabList = element("div", { class: "tabs", role: "tablist", "aria-labelledby": `${id}-title` }, ...tabs);
    this.tabList.addEventListener("keydown", (event) => this.key(event));
    this.which = element("select", { "aria-label": t("campaignPart"), autocomplete: "off" });
    this.which.addEventListener("change", () => this.choose(this.which.value));
    this.heading = element("p", { class: "columns", "aria-hidden": "true" }, element("span"), element("span"));
    this.list = element("ol", { class: "bars", id: `${id}-rows` });
    this.nothing = element("p", { class: "nothing" });
    this.more = element("button", { type: "button", class: "plain" });
    this.more.addEventListener("click", () => this.toggleMore());
    this.csv = element("a", { class: "csv", text: "CSV", "aria-label": t("csvName"), download: "" });
    this.csv.addEventListener("click", (event) => this.save(event));
    this.foot = element("p", { class: "foot" }, this.more, this.csv);
    this.problem = element("p", { class: "panel-problem", hidden: "" });
    const body = element("div", { class: "body", role: "tabpanel", id: `${id}-body` },
      this.which, this.heading, this.list, this.nothing, this.foot, this.problem);
    this.body = body;
    const title = element("h2", { id: `${id}-title`, text: t(`card_${this.name}`) });
    return element("section", { class: "card panel", id, "aria-labelledby": `${id}-title` },
      element("div", { class: "head" }, title, this.tabList), body);
  }

  choose(dimension) {
    if (dimension === this.dimension) return;
    this.dimension = dimension;
    this.length = LENGTHS[0];
    this.clear();
    this.showControls();
    this.changed();
  }

  /** Arrow keys walk the tabs, as tab lists do. */
  key(event) {
    const tabs = [...this.tabList.children];
    const here = tabs.indexOf(document.activeElement);
    const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const tab = tabs[(to + tabs.length) % tabs.length];
    tab.focus();
    tab.click();
  }

  toggleMore() {
    const longer = LENGTHS[LENGTHS.indexOf(this.length) + 1];
    this.length = this.answer?.more > 0 && longer ? longer : LENGTHS[0];
    this.changed();
  }

  async save(event) {
    if (!hasKey()) return; // the link does it
    event.preventDefault();
    try {
      await download(this.csv.href, this.csv.download);
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      setProblem(this.problem, error.message);
    }
  }

  // -------------------------------------------------------------- what is shown

  clear() {
    this.answer = null;
    this.list.replaceChildren();
    setText(this.nothing, t("loading"));
    this.nothing.hidden = false;
    this.foot.hidden = true;
    this.heading.hidden = true;
  }

  /** The view is another: the tab of the filter's dimension comes to the front. */
  viewChanged() {
    const { filter } = view;
    if (filter && this.tabs.flat().includes(filter.dimension)) this.choose(filter.dimension);
    this.showControls();
    if (!this.available) return;
    if (this.answer) this.showRows();
    else this.clear();
  }

  showControls() {
    this.tabs.forEach((dimensions, place) => {
      const chosen = dimensions.includes(this.dimension);
      const tab = this.tabList.children[place];
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      if (!chosen) return;
      this.body.setAttribute("aria-labelledby", tab.id);
      this.which.hidden = dimensions.length < 2;
      keyed(this.which, dimensions.length > 1 ? dimensions : [], (one) => one,
        (one) => element("option", { value: one, text: t(`tab_${one}`) }));
      this.which.value = this.dimension;
    });
    this.list.hidden = !this.available;
    this.node.classList.toggle("unavailable", !this.available);
    if (!this.available) {
      this.nothing.hidden = false;
      setText(this.nothing, t("keptApart", { what: t(`one_${view.filter.dimension}`).toLowerCase() }));
      this.foot.hidden = true;
      this.heading.hidden = true;
      this.pending(false);
      setProblem(this.problem, "");
    }
  }

  pending(flag) {
    this.body.classList.toggle("pending", flag && this.answer !== null);
  }

  show(answer) {
    this.answer = answer;
    this.showRows();
  }

  /** Sessions of the range: what conversion rates are of. */
  setSessions(sessions) {
    if (sessions === this.sessions) return;
    this.sessions = sessions;
    if (this.answer && this.available && this.dimension === "conversion_type") this.showRows();
  }

  showRows() {
    const { results, other, totals, more } = this.answer;
    const [metric] = DIMENSIONS[this.dimension].metrics;
    const rows = results.map((row) => ({ label: String(row.label), amount: row[metric], row }));
    if (other && other[metric] > 0) rows.push({ label: null, amount: other[metric], row: other });
    const most = Math.max(1, ...rows.filter(({ label }) => label !== null).map(({ amount }) => amount));
    const total = totals?.[metric] ?? 0;
    this.nothing.hidden = rows.length > 0;
    this.heading.hidden = rows.length === 0;
    this.foot.hidden = rows.length === 0;
    setText(this.nothing, t("nothingHere"));
    setText(this.heading.firstElementChild, t(`tab_${this.dimension}`));
    setText(this.heading.lastElementChild, t(`metric_${metric}`));
    keyed(this.list, rows, ({ label }) => (label === null ? "rest" : `=${this.dimension}=${label}`),
      ({ label }) => this.row(label), (node, item) => this.updateRow(node, item, most, total));
    this.more.hidden = !(more > 0) && this.length === LENGTHS[0];
    const longer = more > 0 && LENGTHS.at(-1) > this.length;
    setText(this.more, longer ? t("more", { count: more }) : t("fewer"));
    this.csv.href = this.csvAddress().href;
    this.csv.download = `${view.site}-${this.dimension}.csv`.replace(/[^\w.-]+/g, "_");
  }

  row(label) {
    const { dimension } = this;
    const text = label === null ? t("labelOther") : labelText(dimension, label);
    const parts = [
      element("span", { class: "fill", "aria-hidden": "true" }),
      element("span", { class: "label data", text, title: text }),
      element("span", { class: "extra" }),
      element("span", { class: "share" }),
      element("span", { class: "amount" }),
    ];
    if (label === null) return element("li", { class: "rest" }, element("div", { class: "row" }, ...parts));
    const button = element("button", { type: "button", class: "row" }, ...parts);
    button.addEventListener("click", () => toggleFilter(dimension, label));
    const open = isPage(dimension) && webUrl(label) ? link(label, "↗") : null;
    if (open) open.setAttribute("aria-label", t("openPage"));
    return element("li", {}, button, open);
  }

  updateRow(node, { label, amount, row }, most, total) {
    const [bar] = node.children;
    const [fill, , extra, share, number] = bar.children;
    fill.style.width = `${Math.min(100, (amount / most) * 100)}%`;
    setText(number, count(amount));
    setText(share, total >= amount && total > 0 ? roundPercent(amount / total) : "");
    setText(extra, this.extra(row));
    if (label !== null) bar.setAttribute("aria-pressed", String(isFiltered(this.dimension, label)));
  }

  /** Of a goal: what it was worth, and its rate. A session may reach it twice, so that is not a share of sessions. */
  extra(row) {
    if (!DIMENSIONS[this.dimension].metrics.includes("conversion_values")) return "";
    const values = moneys(row.conversion_values).slice(0, 2).join(" · ");
    const rate = this.dimension === "conversion_type" && this.sessions > 0 && !view.filter
      ? t("rate", { amount: decimal((100 * row.conversions) / this.sessions) }) : "";
    return [values, rate].filter(Boolean).join(" · ");
  }
}

export const PANELS = Object.keys(CARDS);
