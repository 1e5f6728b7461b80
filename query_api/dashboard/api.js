// Questions to the query API: one at a time, with the read key where there is one, and errors as sentences.

import { clip } from "./format.js";
import { hasText, language, t } from "./language.js";
import { keep, kept } from "./store.js";

const TIMEOUT_MS = 15_000;

export class ApiError extends Error {
  /** `retryAfter`: ms that the server asks to wait, 0 if it does not say. */
  constructor(message, status = 0, retryAfter = 0) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }

  get wantsKey() {
    return this.status === 401 || this.status === 403;
  }
}

// ---------------------------------------------------------------- the server's clock

let serverAhead = 0;

/** The server's clock decides what "ago" means. */
export const now = () => Date.now() + serverAhead;

/** Its header has whole seconds, so less than 2 s is no difference. */
function learnClock(response) {
  const age = Number(response.headers.get("age")) || 0; // s, in a proxy's cache
  const said = Date.parse(response.headers.get("date")) + age * 1000;
  if (Number.isNaN(said)) return;
  const ahead = said + 500 - Date.now();
  serverAhead = Math.abs(ahead) < 2_000 ? 0 : ahead;
}

// ---------------------------------------------------------------- the read key

let key = kept("key") ?? "";

export const hasKey = () => key !== "";

export function setKey(text) {
  key = text.trim();
  keep("key", key);
}

/** A key in the address (#key=li_...) is taken once, and does not stay where it is seen, copied or kept. */
export function takeKeyFromAddress() {
  const given = new URLSearchParams(location.hash.slice(1)).get("key");
  if (given === null) return;
  setKey(given);
  history.replaceState(null, "", location.pathname + location.search);
}

const headers = (more) => (key ? { authorization: `Bearer ${key}`, ...more } : more);

// ---------------------------------------------------------------- asking

export function address(path, parameters = {}) {
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== undefined && value !== null) url.searchParams.set(name, value);
  }
  return url;
}

function sentence(body, status) {
  const { reason, message } = body?.error ?? {};
  if (language !== "en" && hasText(`reason_${reason}`)) return t(`reason_${reason}`);
  return message ? clip(message) : t("badStatus", { status: String(status) });
}

/** What a response says that is not as wished. */
export async function refusal(response) {
  const body = await response.json().catch(() => null);
  const wait = Number(response.headers.get("retry-after")) * 1000 || 0;
  return new ApiError(sentence(body, response.status), response.status, wait);
}

/** The response of the server, good or bad. Throws ApiError if there is none, AbortError if `signal` says so. */
export async function request(url, signal, options = {}) {
  try {
    return await fetch(url, { ...options, signal, headers: headers(options.headers) });
  } catch (error) {
    signal?.throwIfAborted();
    if (error.name === "TimeoutError") throw error;
    throw new ApiError(t("unreachable"));
  }
}

/**
 * The JSON at a path: {body, stale (s; 0 for fresh), etag}. `etag`: the one known; then `body` is null if nothing has
 * changed. Throws ApiError with a sentence for the reader, AbortError if `signal` says so.
 */
export async function ask(path, parameters, signal, { etag } = {}) {
  const both = AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT_MS)]);
  // "no-cache" asks the server each time, and is answered 304 for what has not changed.
  const how = etag === undefined ? { cache: "no-cache" } : { cache: "no-store" };
  const accept = { accept: "application/json", ...(etag ? { "if-none-match": etag } : {}) };
  let response;
  let body = null;
  try {
    response = await request(address(path, parameters), both, { ...how, headers: accept });
    learnClock(response);
    if (response.status !== 304) {
      if (!response.ok) throw await refusal(response);
      body = await response.json();
    }
  } catch (error) {
    signal.throwIfAborted();
    if (error instanceof ApiError) throw error;
    if (both.aborted) throw new ApiError(t("tooSlow", { count: TIMEOUT_MS / 1000 }));
    throw new ApiError(t(error instanceof SyntaxError ? "notJson" : "unreachable"), response?.status);
  }
  if (body === null && response.status !== 304) throw new ApiError(t("notJson"), response.status);
  const stale = Number(response.headers.get("liveinsight-stale")) || 0;
  return { body, stale, etag: response.headers.get("etag") ?? "" };
}

/** Save what is at an address as a file. The key goes in a header, which a plain link could not send. */
export async function download(url, name) {
  const response = await request(url, undefined, {});
  if (!response.ok) throw await refusal(response);
  const blob = URL.createObjectURL(await response.blob());
  const anchor = document.createElement("a");
  anchor.href = blob;
  anchor.download = name;
  anchor.click();
  setTimeout(() => URL.revokeObjectURL(blob), 60_000);
}
