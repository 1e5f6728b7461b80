// The language of the page: which one, and its texts with their values filled in.

import { remember, remembered } from "./store.js";
import { TEXTS } from "./texts.js";

export const LANGUAGES = { en: "English", ko: "한국어" };

/** `?lang=` (which is remembered), else what was remembered, else the first that the browser asks for. */
function choose() {
  const asked = new URLSearchParams(location.search).get("lang");
  if (Object.hasOwn(LANGUAGES, asked)) {
    remember("language", asked);
    return asked;
  }
  const before = remembered("language");
  if (Object.hasOwn(LANGUAGES, before)) return before;
  const wanted = navigator.languages.map((one) => one.slice(0, 2).toLowerCase());
  return wanted.find((one) => Object.hasOwn(LANGUAGES, one)) ?? "en";
}

export const language = choose();
/** What Intl is asked for: the reader's own variety (en-GB) of the page's language. */
export const locale = navigator.languages.find((one) => one.slice(0, 2).toLowerCase() === language) ?? language;
document.documentElement.lang = language;

const plurals = new Intl.PluralRules(locale);
const numbers = new Intl.NumberFormat(locale);

export const hasText = (key) => Object.hasOwn(TEXTS, key);

/**
 * The text of `key` with `{name}` replaced by `values.name`; numbers are written as the language does. A text with
 * plural forms takes that of `values.count`.
 */
export function t(key, values = {}) {
  const text = TEXTS[key]?.[language] ?? TEXTS[key]?.en;
  if (text === undefined) throw new Error(`there is no text ${key}`);
  const form = typeof text === "string" ? text : text[plurals.select(values.count)] ?? text.other;
  return form.replace(/\{(\w+)\}/g, (whole, name) => {
    const value = values[name];
    return typeof value === "number" ? numbers.format(value) : String(value ?? "");
  });
}

/** Fill the page's own texts: `data-text` is a node's text, `data-label` its name for assistive technology. */
export function fillTexts(root = document) {
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = t(node.dataset.text);
  for (const node of root.querySelectorAll("[data-label]")) node.setAttribute("aria-label", t(node.dataset.label));
}
