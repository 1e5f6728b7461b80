// The chart of the range: the chosen figures over time, the period before them, and the same as a table.

import { now } from "./api.js";
import { TimeChart } from "./chart.js";
import { METRICS, figure } from "./dimensions.js";
import { $, element, keyed, setProblem, setText } from "./dom.js";
import { at, clock, compact, moment, weekday } from "./format.js";
import { t } from "./language.js";
import { available, linesShown, noVisitorsByDay } from "./tiles.js";
import { choices, intervalOf, isOpen, stepOf, stretch, view } from "./view.js";

let chart = null;
let answer = null;

export function buildChart() {
  chart = new TimeChart($("chart"), t("chartName"));
  $("table").addEventListener("toggle", showTable);
}

/** What the chart asks for. With a filter its totals are the tiles' figures, so it asks for all that there is. */
export function chartParameters() {
  const metrics = view.filter ? available() : linesShown();
  // The figures of one label are kept by the quarter.
  const byQuarter = Boolean(view.filter) || metrics.some((name) => METRICS[name].byQuarter);
  const of = view.filter ? { dimension: view.filter.dimension, label: view.filter.label } : {};
  return { interval: intervalOf(stretch(), byQuarter), metrics: metrics.join(), ...of };
}

export function clearChart() {
  answer = null;
  $("chart").classList.add("blank");
  $("table-rows").replaceChildren();
}

export function showChart(body) {
  const points = body.points.map((point) => ({ ...point, at: at(point.at) }));
  answer = { ...body, points, previous: body.previous?.points.map((point) => ({ ...point, at: at(point.at) })) };
  drawChart();
}

/** Draw what was answered, with the lines that are chosen now. */
export function drawChart() {
  if (!answer?.points.length) return;
  const lines = linesShown().filter((name) => answer.metrics.includes(name));
  if (!lines.length) return; // chosen since; its answer is on its way
  const { points, previous, interval } = answer;
  const step = stepOf(interval);
  const end = points.at(-1).at + step;
  const begun = points.filter((point) => point.at <= now()).length;
  const open = isOpen(stretch()) && begun > 0 && points[begun - 1].at + step > now();
  const compared = choices.compare && previous ? previous.slice(0, points.length) : null;
  const values = (point) => lines.map((name) => point[name] ?? 0);
  const { unit } = METRICS[lines[0]];
  $("chart").classList.remove("pending", "blank");
  setText($("chart-step"), t(`step_${interval}`));
  setProblem($("chart-note"), noVisitorsByDay() && !view.filter ? t("noVisitorsByDay") : "");
  showLegend(lines, compared);
  chart.show({
    unit, begun, open, end,
    points: points.map((point) => ({ at: point.at, values: values(point) })),
    previous: compared?.map(values) ?? null,
    series: lines.map((name) => ({ style: METRICS[name].style })),
    amount: (value) => (unit === "count" ? compact(value) : figure(lines[0], value)),
    describe: (index) => [
      spanText(points[index].at, step) + (open && index === begun - 1 ? t("soFar") : ""),
      ...lines.flatMap((name) => {
        const own = [figure(name, points[index][name]), t(`metric_${name}`)];
        const before = compared?.[index]?.[name];
        return before === undefined ? [own] : [own, [figure(name, before), t("inPrevious"), "before"]];
      }),
    ],
  });
  showTable();
}

function spanText(start, step) {
  if (step >= 24 * 3_600_000) return weekday(start);
  return `${moment(start, now())} – ${clock(start + step)}`;
}

function showLegend(lines, compared) {
  const entries = lines.map((name) => [METRICS[name].style, t(`metric_${name}`)]);
  if (compared) entries.push(["before", t("previousPeriod")]);
  keyed($("legend"), entries, ([style]) => style,
    ([style]) => element("li", {}, element("i", { class: `key line ${style}`, "aria-hidden": "true" }), element("span")),
    (node, [, text]) => setText(node.lastElementChild, text));
}

/** The chart's figures for those who do not look at it; made only while they are open. */
function showTable() {
  if (!$("table").open || !answer) return;
  const lines = linesShown().filter((name) => answer.metrics.includes(name));
  const { points, previous, interval } = answer;
  const compared = choices.compare && previous;
  const heads = lines.flatMap((name) => [name, ...(compared ? [`${name} before`] : [])]);
  const headText = (head) => {
    const [name, before] = head.split(" ");
    return before ? t("metricBefore", { metric: t(`metric_${name}`) }) : t(`metric_${name}`);
  };
  $("table-head").replaceChildren(
    element("th", { scope: "col", text: t("time") }),
    ...heads.map((head) => element("th", { scope: "col", class: "number", text: headText(head) })),
  );
  const rows = points.map((point, index) => ({ point, before: previous?.[index] }))
    .filter(({ point }) => point.at <= now());
  keyed($("table-rows"), rows.reverse(), ({ point }) => point.at,
    () => element("tr", {}, element("th", { scope: "row" })),
    (node, { point, before }) => {
      setText(node.firstElementChild, spanText(point.at, stepOf(interval)));
      while (node.children.length > heads.length + 1) node.lastElementChild.remove();
      while (node.children.length < heads.length + 1) node.append(element("td", { class: "number" }));
      heads.forEach((head, place) => {
        const [name, earlier] = head.split(" ");
        setText(node.children[place + 1], figure(name, (earlier ? before : point)?.[name]));
      });
    });
}
