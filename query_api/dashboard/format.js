// How values become text, in the page's language and the chosen time zone.

import { locale, t } from "./language.js";
import { wall, zone } from "./zone.js";

const whole = new Intl.NumberFormat(locale, { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat(locale, { notation: "compact", maximumFractionDigits: 1 });
const one = new Intl.NumberFormat(locale, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const share = new Intl.NumberFormat(locale, { style: "percent", maximumFractionDigits: 1 });
const wholeShare = new Intl.NumberFormat(locale, { style: "percent", maximumFractionDigits: 0 });
const signed = new Intl.NumberFormat(locale, { style: "percent", maximumFractionDigits: 0, signDisplay: "exceptZero" });
const regions = new Intl.DisplayNames(locale, { type: "region" });
const tongues = new Intl.DisplayNames(locale, { type: "language" });

const LONGEST_TEXT = 400;
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

const NONE = "–";
export const count = (value) => (isNumber(value) ? whole.format(value) : NONE);
export const compact = (value) => short.format(value);
export const decimal = (value) => (isNumber(value) ? one.format(value) : NONE);
export const percent = (value) => (isNumber(value) ? share.format(value) : NONE);
export const roundPercent = (value) => wholeShare.format(value);

/** The change from `before` to `now` in per cent with its sign and an arrow; "" where there is nothing to compare. */
export function change(now, before) {
  if (!isNumber(now) || !isNumber(before) || before === 0) return "";
  const part = now / before - 1;
  if (Math.abs(part) < 0.005) return `± ${wholeShare.format(0)}`;
  return `${part > 0 ? "↑" : "↓"} ${signed.format(part)}`;
}

// ---------------------------------------------------------------- times

const made = new Map();

function times(options) {
  const key = zone() + Object.keys(options).join() + options.month;
  if (!made.has(key)) made.set(key, new Intl.DateTimeFormat(locale, { hourCycle: "h23", timeZone: zone(), ...options }));
  return made.get(key);
}

const MINUTE = { hour: "2-digit", minute: "2-digit" };
const DAY = { month: "short", day: "numeric" };

export const clock = (ms) => times(MINUTE).format(ms);
export const clockSeconds = (ms) => times({ ...MINUTE, second: "2-digit" }).format(ms);
export const day = (ms) => times(DAY).format(ms);
export const weekday = (ms) => times({ weekday: "short", ...DAY }).format(ms);

/** A moment with as much of the date as tells it from others near `now` (ms). */
export function moment(ms, now) {
  const [then, today] = [wall(ms), wall(now)];
  if (then.year !== today.year) return times({ year: "numeric", ...DAY, ...MINUTE }).format(ms);
  return then.month === today.month && then.day === today.day ? clock(ms) : times({ ...DAY, ...MINUTE }).format(ms);
}

/** The chosen zone with its distance from UTC at `now` (ms). */
export function zoneText(now) {
  const told = new Intl.DateTimeFormat("en", { timeZone: zone(), timeZoneName: "longOffset" }).formatToParts(now);
  const distance = told.find((part) => part.type === "timeZoneName")?.value ?? "";
  return `${zone()} (${distance.replace("GMT", "UTC").replace(/^UTC$/, "UTC+00:00")})`;
}

const unit = (name) => new Intl.NumberFormat(locale, { style: "unit", unit: name, unitDisplay: "narrow" });
const units = { day: unit("day"), hour: unit("hour"), minute: unit("minute"), second: unit("second") };

/** Seconds as the two units that matter: "8s", "4m 5s", "2h 10m", "3d 4h". */
export function duration(seconds) {
  if (!isNumber(seconds)) return NONE;
  const total = Math.max(0, Math.round(seconds));
  const pairs = [[86_400, "day", 3600, "hour"], [3600, "hour", 60, "minute"], [60, "minute", 1, "second"]];
  const pair = pairs.find(([size]) => total >= size);
  if (!pair) return units.second.format(total);
  const [size, name, part, partName] = pair;
  const rest = Math.floor((total % size) / part);
  const text = units[name].format(Math.floor(total / size));
  return rest ? `${text} ${units[partName].format(rest)}` : text;
}

const relative = new Intl.RelativeTimeFormat(locale, { style: "narrow", numeric: "always" });

/** How long ago (ms) in one unit; less than a second is "now". */
export function ago(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 1) return t("justNow");
  if (seconds < 60) return relative.format(-seconds, "second");
  if (seconds < 3600) return relative.format(-Math.floor(seconds / 60), "minute");
  if (seconds < 86_400) return relative.format(-Math.floor(seconds / 3600), "hour");
  return relative.format(-Math.floor(seconds / 86_400), "day");
}

// ---------------------------------------------------------------- names

/** An amount of money; a currency that the browser does not know stands as it came. */
export function money(value, currency) {
  try {
    return new Intl.NumberFormat(locale, { style: "currency", currency, maximumFractionDigits: 2 }).format(value);
  } catch {
    return clip(`${decimal(value)} ${currency || ""}`.trim());
  }
}

/** Sums by currency, the greatest first. */
export function moneys(values) {
  return Object.entries(values ?? {}).sort((a, b) => b[1] - a[1]).map(([currency, value]) => money(value, currency));
}

/** A country's name for its ISO code, else what came. */
export function country(code) {
  return /^[A-Z]{2}$/.test(code || "") ? regions.of(code) : clip(code || NONE);
}

/** A language's name for its tag (ko, en-GB), else what came. */
export function languageName(tag) {
  return /^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$/.test(tag || "") ? tongues.of(tag) : clip(tag || NONE);
}

/** A moment from the API (ISO 8601 or ms) as ms since 1970; NaN if it is none. */
export const at = (value) => (typeof value === "number" ? value : Date.parse(value));

/** Text short enough to lay out; what is cut off ends in an ellipsis. */
export function clip(value, longest = LONGEST_TEXT) {
  const text = String(value ?? "");
  return text.length > longest ? `${text.slice(0, longest)}…` : text;
}

/** What is there of the parts, as one line. */
export const joined = (...parts) => parts.filter(Boolean).map((part) => clip(part, 80)).join(" · ");
