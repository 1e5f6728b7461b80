// A list of events as a time line: what each was, where, and what it carried.

import { eventName, isKnownEvent } from "./dimensions.js";
import { element, keyed, link, pageLabel, setText } from "./dom.js";
import { at, clip, clockSeconds, count, duration, money } from "./format.js";
import { t } from "./language.js";

const MOST_EVENTS = 500;

/** Show the newest of the events, in the order that they have. */
export function showEvents(list, all) {
  keyed(list, folded(all.slice(-MOST_EVENTS)), ({ event }) => event.event_id, eventItem, updateEventItem);
}

/** How many there are, and how many of them are shown. */
export const eventCount = (all) => (all.length > MOST_EVENTS
  ? t("lastEvents", { shown: MOST_EVENTS, count: all.length }) : t("events", { count: all.length }));

/** Heartbeats in a row say one thing: still here. */
function folded(events) {
  const entries = [];
  for (const event of events) {
    const before = entries.at(-1);
    if (event.event_type === "heartbeat" && before?.event.event_type === "heartbeat") {
      before.times += 1;
      before.until = event.timestamp;
    } else entries.push({ event, times: 1, until: event.timestamp });
  }
  return entries;
}

function eventItem({ event }) {
  const time = at(event.timestamp);
  const what = element("p", { class: "what" }, element("b", { class: "data", text: eventName(event.event_type) }));
  const body = element("div", {}, what);
  const line = (node) => body.append(element("p", { class: "detail" }, node));
  const text = (value, muted) => element("span", { class: muted ? "data muted" : "data", text: clip(value) });
  if (event.event_type === "page_view") {
    if (event.title) line(text(event.title));
    line(link(event.page_url, pageLabel(event.page_url)));
    if (event.referrer) line(text(t("cameFrom", { from: event.referrer }), true));
  }
  if (event.element) {
    const { id, tag, text: said, href } = event.element;
    line(text(said ? `“${said}”` : [tag, id && `#${id}`].filter(Boolean).join("")));
    if (href) line(link(href, clip(href)));
  }
  if (event.conversion) {
    const { type, value, currency } = event.conversion;
    const worth = typeof value === "number" ? ` · ${currency ? money(value, currency) : count(value)}` : "";
    line(text(`${clip(type)}${worth}`));
  }
  const properties = Object.entries(event.properties ?? {})
    .map(([property, value]) => `${property}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
  if (properties.length) line(text(properties.join(", "), true));
  what.append(element("span", { class: "muted times" }));
  return element("li", { "data-kind": isKnownEvent(event.event_type) ? event.event_type : "custom" },
    element("time", { datetime: new Date(time).toISOString(), text: clockSeconds(time) }), body);
}

function updateEventItem(item, { event, times, until }) {
  const lasted = duration((at(until) - at(event.timestamp)) / 1000);
  setText(item.querySelector(".times"), times > 1 ? ` ${t("beats", { count: times, duration: lasted })}` : "");
}
