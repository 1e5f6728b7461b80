// Two charts in SVG: lines over time, and bars by minute. Each draws at the size of its container, takes new
// figures without being rebuilt, and is read with the pointer or the arrow keys: to a screen reader it is a
// slider whose value is the figures under the cursor.

import { clock, compact, day, element, setText } from "./rendering.js";

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

/** The ticks 0, step, 2 step, ... that reach over `greatest`: whole numbers, about `wanted` of them. */
export function amountTicks(greatest, wanted = 4) {
  const raw = Math.max(greatest, 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = Math.max(1, [1, 2, 5, 10].find((factor) => factor * power >= raw - 1e-9) * power);
  const ticks = [0];
  while (ticks.at(-1) < Math.max(greatest, 1)) ticks.push(Math.round(ticks.at(-1) + step));
  return ticks;
}

/** Moments (ms) from `from` to `to` at round local times, at most `most` of them; days keep their length in hours. */
export function timeTicks(from, to, most) {
  const minutes = (to - from) / MINUTE;
  const step = TICK_MINUTES.find((candidate) => minutes / candidate <= most) ?? TICK_MINUTES.at(-1);
  const start = new Date(from);
  const ticks = [];
  for (let index = 0; ticks.length <= most + 1; index += 1) {
    const offset = index * step;
    const moment = step < DAY_MINUTES
      ? new Date(start.getFullYear(), start.getMonth(), start.getDate(), 0, offset)
      : new Date(start.getFullYear(), start.getMonth(), start.getDate() + offset / DAY_MINUTES);
    if (moment > to) break;
    if (moment >= from && moment.getTime() !== ticks.at(-1)) ticks.push(moment.getTime());
  }
  return ticks;
}

function tickLabel(ms) {
  const date = new Date(ms);
  return date.getHours() === 0 && date.getMinutes() === 0 ? day(ms) : clock(ms);
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
      const text = [heading, ...rows.map((row) => row.join(" "))].join(", ");
      set(this.drawing, { "aria-valuenow": shown, "aria-valuetext": text });
    }
    this.readout.hidden = index === null;
    this.mark(index);
    if (index === null) return;
    const [heading, ...rows] = this.describe(index);
    const lines = rows.map(([amount, label]) => element("p", {}, element("b", { text: amount }), ` ${label}`));
    this.readout.replaceChildren(element("p", { text: heading }), ...lines);
    const x = this.x(index);
    const room = this.container.clientWidth;
    const width = this.readout.offsetWidth;
    const left = x + 12 + width > room ? Math.max(0, x - 12 - width) : x + 12;
    this.readout.style.transform = `translate(${Math.round(left)}px, 0)`;
  }
}

/**
 * Lines over time. Model: {from, to, step (ms), points: [{at, values}], series: [{label, style, shown}], open
 * (whether the last point is still counting), describe(index) -> [heading, [amount, label]...]}.
 */
export class TimeChart extends Chart {
  constructor(container, label) {
    super(container, label);
    this.margin = { top: 8, right: 12, bottom: 22, left: 44 };
    this.grid = svg("g", { class: "grid" }, this.drawing);
    this.amounts = svg("g", { class: "ticks", "text-anchor": "end" }, this.drawing);
    this.times = svg("g", { class: "ticks", "text-anchor": "middle" }, this.drawing);
    this.fills = svg("g", {}, this.drawing);
    this.lines = svg("g", {}, this.drawing);
    this.openings = svg("g", {}, this.drawing);
    this.marker = svg("line", { class: "marker", visibility: "hidden" }, this.drawing);
    this.dots = svg("g", {}, this.drawing);
  }

  x(index) {
    const { from, to, step, points } = this.model;
    return this.left + ((points[index].at + step / 2 - from) / (to - from)) * (this.right - this.left);
  }

  y(amount) {
    return this.bottom - (amount / this.top) * (this.bottom - this.margin.top);
  }

  paint(width, height) {
    const { points, series, from, to, open } = this.model;
    const shown = series.map((one, place) => ({ ...one, place })).filter((one) => one.shown);
    let greatest = 0;
    for (const point of points) for (const { place } of shown) greatest = Math.max(greatest, point.values[place]);
    const ticks = amountTicks(greatest);
    this.top = ticks.at(-1);
    this.left = this.margin.left;
    this.right = width - this.margin.right;
    this.bottom = height - this.margin.bottom;

    pool(this.grid, ticks, () => svg("line", {}), (node, amount) => {
      const y = Math.round(this.y(amount)) + 0.5;
      set(node, { x1: this.left, x2: this.right, y1: y, y2: y, class: amount === 0 ? "base" : "" });
    });
    pool(this.amounts, ticks, () => svg("text", {}), (node, amount) => {
      set(node, { x: this.left - 8, y: Math.round(this.y(amount)) + 4 });
      setText(node, compact(amount));
    });
    const span = (ms) => this.left + ((ms - from) / (to - from)) * (this.right - this.left);
    const moments = timeTicks(from, to, Math.max(2, Math.floor((this.right - this.left) / 60)))
      .filter((ms) => span(ms) <= width - 18);
    pool(this.times, moments, () => svg("text", {}), (node, ms) => {
      set(node, { x: span(ms).toFixed(1), y: height - 4 });
      setText(node, tickLabel(ms));
    });

    const closed = open ? points.length - 1 : points.length;
    const spot = (index, place) => `${this.x(index).toFixed(1)},${this.y(points[index].values[place]).toFixed(1)}`;
    const path = (first, end, place) => {
      const spots = [];
      for (let index = Math.max(0, first); index < end; index += 1) spots.push(spot(index, place));
      return spots.length ? `M${spots.join("L")}` : "";
    };
    pool(this.lines, shown, () => svg("path", {}), (node, { place, style }) => {
      set(node, { class: `line ${style}`, d: path(0, closed, place) });
    });
    // What is still counting is drawn apart, lest it look like a fall.
    pool(this.openings, open ? shown : [], () => svg("path", {}), (node, { place, style }) => {
      set(node, { class: `line open ${style}`, d: path(closed - 1, points.length, place) });
    });
    const filled = closed > 1 ? shown.filter((one) => one.style === "accent") : [];
    pool(this.fills, filled, () => svg("path", { class: "fill" }), (node, { place }) => {
      const ground = `L${this.x(closed - 1).toFixed(1)},${this.bottom}L${this.x(0).toFixed(1)},${this.bottom}Z`;
      set(node, { d: path(0, closed, place) + ground });
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
    const shown = this.model.series.map((one, place) => ({ ...one, place })).filter((one) => one.shown);
    pool(this.dots, shown, () => svg("circle", { r: 3.5 }), (node, { place, style }) => {
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
    setText(this.greatest, `peak ${compact(Math.max(...sums))}`);
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
