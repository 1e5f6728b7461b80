// The time zone in which times are shown and days begin: the browser's, or the one chosen.

import { remember, remembered } from "./store.js";

const HOUR = 3_600_000;

export const browserZone = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";

function isZone(name) {
  try {
    return Boolean(new Intl.DateTimeFormat("en", { timeZone: name }));
  } catch {
    return false;
  }
}

const before = remembered("zone");
let chosen = before && isZone(before) ? before : browserZone;
let parts = reader();

function reader() {
  return new Intl.DateTimeFormat("en-US", {
    timeZone: chosen, hourCycle: "h23", calendar: "gregory", year: "numeric", month: "numeric", day: "numeric",
    hour: "numeric", minute: "numeric", second: "numeric",
  });
}

export const zone = () => chosen;

export function setZone(name) {
  chosen = isZone(name) ? name : browserZone;
  parts = reader();
  remember("zone", chosen);
}

/** The names to choose from: the browser's zone and UTC first. */
export function zones() {
  const all = Intl.supportedValuesOf?.("timeZone") ?? [];
  return [...new Set([browserZone, "UTC", chosen, ...all])];
}

/** What the clock on the wall shows at a moment (ms); `month` counts from 1. */
export function wall(ms) {
  const found = {};
  for (const { type, value } of parts.formatToParts(ms)) if (type !== "literal") found[type] = Number(value);
  return found;
}

function offset(ms) {
  const { year, month, day, hour, minute, second } = wall(ms);
  return Date.UTC(year, month - 1, day, hour, minute, second) - Math.floor(ms / 1000) * 1000;
}

/** The moment (ms) at which the clock on the wall shows this; a day or an hour too many goes over into the next. */
export function instant(year, month, day, hour = 0, minute = 0) {
  const utc = Date.UTC(year, month - 1, day, hour, minute);
  const guess = utc - offset(utc);
  return utc - offset(guess);
}

/** Midnight of the day of `ms`, or of one `days` later. */
export function startOfDay(ms, days = 0) {
  const { year, month, day } = wall(ms);
  return instant(year, month, day + days);
}

/** The start of the hour of `ms`: not every zone is whole hours from UTC. */
export function startOfHour(ms) {
  return ms - (((ms + offset(ms)) % HOUR) + HOUR) % HOUR;
}

/** A moment as the value of a datetime-local input, and back; NaN if it is none. */
export function toInput(ms) {
  const { year, month, day, hour, minute } = wall(ms);
  const pad = (value, size = 2) => String(value).padStart(size, "0");
  return `${pad(year, 4)}-${pad(month)}-${pad(day)}T${pad(hour)}:${pad(minute)}`;
}

export function fromInput(text) {
  const found = /^(\d{4,6})-(\d\d)-(\d\d)T(\d\d):(\d\d)/.exec(text);
  return found ? instant(...found.slice(1).map(Number)) : NaN;
}
