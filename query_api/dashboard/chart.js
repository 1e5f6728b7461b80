// Two charts in SVG: lines over time, and bars by minute. Each draws at the size of its container, takes new
// figures without being rebuilt, and is read with the pointer or the arrow keys: to a screen reader it is a
// slider whose value is the figures under the cursor.

import { element, setText } from "./dom.js";
import { clock, compact, day } from "./format.js";
import { t } from "./language.js";
import { instant, wall } from "./zone.js";

const SVG = "http://www.w3.org/2000/svg";
const MINUTE = 60_000;
const DAY_MINUTES = 1440;
const TICK_MINUTES = [5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 7 * 1440, 14 * 1440, 28 * 1440, 91 * 1440];

function svg(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (parent) parent.append(made);
  return made;
}

function set(node, attributes) {
  for (const [key, value] of Object.entries(attributes)) {
    if (node.getAttribute(key) !== String(value)) node.setAttribute(key, value);
  }
}

/** Show as many of a group's nodes as there are items; the rest wait hidden, to be used again. */
function pool(group, items, create, update) {
  while (group.children.length < items.length) group.append(create());
  for (const [index, node] of [...group.children].entries()) {
    const item = items[index];
    set(node, { visibility: item === undefined ? "hidden" : "visible" });
    if (item !== undefined) update(node, item);
  }
}

const NICE = {
  count: { steps: [1, 2, 5, 10], least: 1 },
  ratio: { steps: [1, 2, 5, 10], least: 0.5 },
  fraction: { steps: [1, 2, 2.5, 5, 10], least: 0.01 },
  seconds: { steps: null, least: 1 },
};
const NICE_SECONDS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 28_800, 86_400];

/** The ticks 0, step, 2 step, ... that reach over `greatest`: round amounts of the unit, about `wanted` of them. */
function amountTicks(greatest, unit = "count", wanted = 4) {
  const { steps, least } = NICE[unit];
  const raw = Math.max(greatest / wanted, least);
  const power = 10 ** Math.floor(Math.log10(raw) + 1e-9);
  const step = steps
    ? Math.max(least, steps.find((factor) => factor * power >= raw - 1e-9) * power)
    : NICE_SECONDS.find((one) => one >= raw - 1e-9) ?? Math.ceil(raw / 86_400) * 86_400;
  const ticks = [0];
  while (ticks.at(-1) < greatest - 1e-9 || ticks.length < 2) ticks.push(Number((ticks.length * step).toPrecision(12)));
  return ticks;
}

/** Moments (ms) from `from` to `to` at round times of the chosen zone, at most `most` of them; days keep their length in hours. */
function timeTicks(from, to, most) {
  const minutes = (to - from) / MINUTE;
  const step = TICK_MINUTES.find((candidate) => minutes / candidate <= most) ?? TICK_MINUTES.at(-1);
  const { year, month, day: date } = wall(from);
  const ticks = [];
  for (let index = 0; ticks.length <= most + 1; index += 1) {
    const offset = index * step;
    const moment = step < DAY_MINUTES
      ? instant(year, month, date, 0, offset)
      : instant(year, month, date + offset / DAY_MINUTES);
    if (moment > to) break;
    if (moment >= from && moment !== ticks.at(-1)) ticks.push(moment);
  }
  return ticks;
}

function tickLabel(ms) {
  const { hour, minute } = wall(ms);
  return hour === 0 && minute === 0 ? day(ms) : clock(ms);
}

/** What both charts share: a drawing that fits its container, and a cursor that reads it. */
class Chart {
  constructor(container, label) {
    this.container = container;
    this.model = null;
    this.cursor = null; // the moment (ms) that is read, so that it stays while figures move on
    this.drawing = svg("svg", { tabindex: 0, role: "slider", "aria-label": label, "aria-valuemin": 0 });
    this.readout = element("div", { class: "readout", "aria-hidden": "true" });
    this.readout.hidden = true;
    container.append(this.drawing, this.readout);
    this.drawing.addEventListener("pointermove", (event) => this.point(event));
    this.drawing.addEventListener("pointerdown", (event) => this.point(event));
    this.drawing.addEventListener("pointerleave", () => this.leave());
    this.drawing.addEventListener("focus", () => {
      if (this.drawing.matches(":focus-visible")) this.read(this.cursorIndex() ?? this.last());
    });
    this.drawing.addEventListener("blur", () => this.leave());
    this.drawing.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(container);
  }

  /** `model.points`: [{at (ms), values: [...]}] in order of time, and what the drawing needs besides. */
  show(model) {
    this.model = model;
    this.draw();
  }

  last() {
    return this.model ? this.model.points.length - 1 : -1;
  }

  cursorIndex() {
    if (this.cursor === null || !this.model) return null;
    const index = this.model.points.findIndex((point) => point.at === this.cursor);
    return index < 0 ? null : index;
  }

  leave() {
    this.cursor = null;
    this.readOut();
  }

  read(index) {
    if (!this.model || this.last() < 0) return;
    this.cursor = this.model.points[Math.min(Math.max(index, 0), this.last())].at;
    this.readOut();
  }

  point(event) {
    if (!this.model || this.last() < 0) return;
    const x = event.clientX - this.drawing.getBoundingClientRect().left;
    let nearest = 0;
    for (let index = 1; index <= this.last(); index += 1) {
      if (Math.abs(this.x(index) - x) < Math.abs(this.x(nearest) - x)) nearest = index;
    }
    this.read(nearest);
  }

  key(event) {
    const here = this.cursorIndex() ?? this.last();
    const to = {
      ArrowLeft: here - 1, ArrowDown: here - 1, ArrowRight: here + 1, ArrowUp: here + 1,
      PageUp: here + 12, PageDown: here - 12, Home: 0, End: this.last(),
    }[event.key];
    if (event.key === "Escape") this.leave();
    if (to === undefined) return;
    event.preventDefault();
    this.read(to);
  }

  draw() {
    const width = Math.floor(this.container.clientWidth);
    const height = Math.floor(this.container.clientHeight);
    if (!this.model || width < 40 || height < 40) return;
    set(this.drawing, { viewBox: `0 0 ${width} ${height}`, width, height });
    this.paint(width, height);
    set(this.drawing, { "aria-valuemax": Math.max(0, this.last()) });
    this.readOut();
  }

  readOut() {
    const index = this.cursorIndex();
    const shown = index ?? this.last();
    if (shown >= 0) {
      const [heading, ...rows] = this.describe(shown);
      const text = [heading, ...rows.map(([amount, label]) => `${amount} ${label}`)].join(", ");
      set(this.drawing, { "aria-valuenow": shown, "aria-valuetext": text });
    }
    this.readout.hidden = index === null;
    this.mark(index);
    if (index === null) return;
    const [heading, ...rows] = this.describe(index);
    const lines = rows.map(([amount, label, kind]) => element("p", { class: kind }, element("b", { text: amount }), ` ${label}`));
    this.readout.replaceChildren(element("p", { text: heading }), ...lines);
    const x = this.x(index);
    const room = this.container.clientWidth;
    const width = this.readout.offsetWidth;
    const left = x + 12 + width > room ? Math.max(0, x - 12 - width) : x + 12;
    this.readout.style.transform = `translate(${Math.round(left)}px, 0)`;
  }
}

/**
 * Lines over time, and those of the period before as lighter dashed ones. Model: {points: [{at, values}], end (ms, of
 * the last point), previous: [values] for the same places or null, begun (how many of the points are not in the
 * future), open (whether the last of these is still counting), series: [{style}] as in `values`, unit, amount(value) ->
 * text of a tick, describe(index) -> [heading, [amount, label]...]}. A point is as wide as any other, however long its
 * day is.
 */
export class TimeChart extends Chart {
  constructor(container, label) {
    super(container, label);
    this.margin = { top: 8, right: 12, bottom: 22, left: 48 };
    this.grid = svg("g", { class: "grid" }, this.drawing);
    this.amounts = svg("g", { class: "ticks", "text-anchor": "end" }, this.drawing);
    this.times = svg("g", { class: "ticks", "text-anchor": "middle" }, this.drawing);
    this.fills = svg("g", {}, this.drawing);
    this.befores = svg("g", { class: "befores" }, this.drawing);
    this.lines = svg("g", { class: "lines" }, this.drawing);
    this.openings = svg("g", {}, this.drawing);
    this.marker = svg("line", { class: "marker", visibility: "hidden" }, this.drawing);
    this.dots = svg("g", {}, this.drawing);
  }

  last() {
    return this.model ? this.model.begun - 1 : -1;
  }

  across(place) {
    return this.left + (place / this.model.points.length) * (this.right - this.left);
  }

  x(index) {
    return this.across(index + 0.5);
  }

  /** Where a moment is, in points from the first. */
  place(ms) {
    const { points, end } = this.model;
    let index = points.findIndex((point) => point.at > ms) - 1;
    if (index < -1) index = points.length - 1;
    const start = points[Math.max(index, 0)].at;
    return Math.max(index, 0) + (ms - start) / ((points[Math.max(index, 0) + 1]?.at ?? end) - start);
  }

  y(amount) {
    return this.bottom - (amount / this.top) * (this.bottom - this.margin.top);
  }

  paint(width, height) {
    const { points, previous, begun, series, unit, amount, end, open } = this.model;
    let greatest = 0;
    for (const { values } of points) greatest = Math.max(greatest, ...values);
    for (const values of previous ?? []) greatest = Math.max(greatest, ...values);
    const ticks = amountTicks(greatest, unit);
    this.top = ticks.at(-1);
    this.left = this.margin.left;
    this.right = width - this.margin.right;
    this.bottom = height - this.margin.bottom;

    pool(this.grid, ticks, () => svg("line", {}), (node, tick) => {
      const y = Math.round(this.y(tick)) + 0.5;
      set(node, { x1: this.left, x2: this.right, y1: y, y2: y, class: tick === 0 ? "base" : "" });
    });
    pool(this.amounts, ticks, () => svg("text", {}), (node, tick) => {
      set(node, { x: this.left - 8, y: Math.round(this.y(tick)) + 4 });
      setText(node, amount(tick));
    });
    const most = Math.max(2, Math.floor((this.right - this.left) / 64));
    const moments = points.length ? timeTicks(points[0].at, end, most) : [];
    const spots = moments.map((ms) => ({ ms, x: this.across(this.place(ms)) })).filter(({ x }) => x <= width - 18);
    pool(this.times, spots, () => svg("text", {}), (node, { ms, x }) => {
      set(node, { x: x.toFixed(1), y: height - 4 });
      setText(node, tickLabel(ms));
    });

    const closed = open ? begun - 1 : begun;
    const path = (first, stop, amountAt) => {
      const made = [];
      for (let index = Math.max(0, first); index < stop; index += 1) {
        made.push(`${this.x(index).toFixed(1)},${this.y(amountAt(index)).toFixed(1)}`);
      }
      return made.length ? `M${made.join("L")}` : "";
    };
    const places = series.map(({ style }, place) => ({ style, place }));
    const own = (place) => (index) => points[index].values[place];
    pool(this.befores, previous ? places : [], () => svg("path", {}), (node, { place, style }) => {
      set(node, { class: `line before ${style}`, d: path(0, previous.length, (index) => previous[index][place]) });
    });
    pool(this.lines, places, () => svg("path", {}), (node, { place, style }) => {
      set(node, { class: `line ${style}`, d: path(0, closed, own(place)) });
    });
    // What is still counting is drawn apart, lest it look like a fall.
    pool(this.openings, open ? places : [], () => svg("path", {}), (node, { place, style }) => {
      set(node, { class: `line open ${style}`, d: path(closed - 1, begun, own(place)) });
    });
    pool(this.fills, closed > 1 ? places.slice(0, 1) : [], () => svg("path", {}), (node, { place, style }) => {
      const ground = `L${this.x(closed - 1).toFixed(1)},${this.bottom}L${this.x(0).toFixed(1)},${this.bottom}Z`;
      set(node, { class: `fill ${style}`, d: path(0, closed, own(place)) + ground });
    });
  }

  mark(index) {
    if (index === null) {
      set(this.marker, { visibility: "hidden" });
      pool(this.dots, [], () => svg("circle", {}), () => {});
      return;
    }
    const x = this.x(index).toFixed(1);
    set(this.marker, { visibility: "visible", x1: x, x2: x, y1: this.margin.top, y2: this.bottom });
    pool(this.dots, this.model.series, () => svg("circle", { r: 3.5 }), (node, { style }) => {
      const place = this.model.series.findIndex((one) => one.style === style);
      set(node, { class: `dot ${style}`, cx: x, cy: this.y(this.model.points[index].values[place]).toFixed(1) });
    });
  }

  describe(index) {
    return this.model.describe(index);
  }
}

/** Stacked bars, one for each minute. Model: {points: [{at, values: [page views, other events]}], describe}. */
export class MinuteBars extends Chart {
  constructor(container, label) {
    super(container, label);
    this.base = svg("line", { class: "grid base" }, this.drawing);
    this.tops = svg("g", {}, this.drawing);
    this.bottoms = svg("g", {}, this.drawing);
    this.greatest = svg("text", { class: "ticks", "text-anchor": "end" }, this.drawing);
    this.times = svg("g", { class: "ticks" }, this.drawing);
  }

  x(index) {
    return (index + 0.5) * this.pitch;
  }

  paint(width, height) {
    const { points } = this.model;
    const bottom = height - 20;
    const top = 14;
    this.pitch = width / points.length;
    const bar = Math.max(1, this.pitch - 2);
    const sums = points.map((point) => point.values[0] + point.values[1]);
    const most = Math.max(...sums, 1);
    const tall = (amount) => (amount / most) * (bottom - top);
    set(this.base, { x1: 0, x2: width, y1: bottom + 0.5, y2: bottom + 0.5 });
    const rows = points.map((point, index) => ({ index, views: tall(point.values[0]), all: tall(sums[index]) }));
    const place = (node, index, up, size) => set(node, {
      x: (index * this.pitch + 1).toFixed(1),
      y: (bottom - up).toFixed(1),
      width: bar.toFixed(1),
      height: Math.max(0, size).toFixed(1),
    });
    pool(this.tops, rows, () => svg("rect", { class: "bar soft" }), (node, { index, all, views }) => {
      place(node, index, all, all - views);
    });
    pool(this.bottoms, rows, () => svg("rect", { class: "bar accent" }), (node, { index, views }) => {
      place(node, index, views, views);
    });
    set(this.greatest, { x: width, y: 9 });
    setText(this.greatest, t("peak", { amount: compact(Math.max(...sums)) }));
    const marks = [[0, "start"], [0.5, "middle"], [1, "end"]];
    pool(this.times, marks, () => svg("text", {}), (node, [part, anchor]) => {
      set(node, { x: (part * width).toFixed(1), y: height - 4, "text-anchor": anchor });
      setText(node, clock(points[Math.round(part * (points.length - 1))].at));
    });
  }

  mark(index) {
    for (const group of [this.tops, this.bottoms]) {
      for (const [place, node] of [...group.children].entries()) node.classList.toggle("read", place === index);
    }
  }

  describe(index) {
    return this.model.describe(index);
  }
}
