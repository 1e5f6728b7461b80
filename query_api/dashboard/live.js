// Who is here now: the realtime answer as the server pushes it, or, where its stream cannot be had, asked for.

import { ApiError, address, ask, refusal, request } from "./api.js";
import { EventParser } from "./eventstream.js";
import { t } from "./language.js";
import { Poller, backoff } from "./poller.js";

const POLL_MS = 2_000;
const FIRST_EVENT_MS = 5_000; // a stream that says nothing for so long is held up by a proxy
const SILENCE_MS = 40_000; // the server sends a comment every 15 s
const RETRY_MS = 3_000;
const LONGEST_RETRY_MS = 60_000;
const LASTING_MS = 30_000; // a stream that lasted so long was a good one

export class LiveFeed {
  /** `take(answer)`: each realtime answer. `changed()`: how it is had, or the error, is another. */
  constructor(take, changed) {
    this.take = take;
    this.changed = changed;
    this.site = null;
    this.streaming = false;
    this.answeredAt = null;
    this.stale = 0;
    this.poller = new Poller((signal) => this.poll(signal), POLL_MS, changed);
  }

  get error() {
    return this.streaming ? null : this.poller.error ?? this.refused ?? null;
  }

  start(site) {
    this.stop();
    if (site !== this.site) this.answeredAt = null;
    this.site = site;
    this.etag = "";
    if (document.hidden) return;
    this.following = new AbortController();
    this.follow(this.following.signal);
  }

  stop() {
    this.following?.abort();
    this.poller.stop();
    this.poller.error = null;
    this.poller.failures = 0;
    this.refused = null;
    this.streaming = false;
  }

  answered(answer) {
    this.answeredAt = Date.now();
    this.take(answer);
  }

  /** The stream, again and again; what is missed while there is none is polled for. */
  async follow(signal) {
    let failures = 0;
    while (!signal.aborted) {
      const began = Date.now();
      const parser = new EventParser();
      let problem = null;
      try {
        await this.stream(parser, signal);
      } catch (error) {
        problem = error;
      }
      if (signal.aborted) return;
      const polls = this.streaming || failures === 0;
      this.streaming = false;
      if (problem?.wantsKey) {
        this.refused = problem;
        this.poller.stop();
        this.changed();
        return;
      }
      if (polls) this.poller.restart();
      failures = Date.now() - began > LASTING_MS ? 1 : failures + 1;
      // Too many streams, or no such path: it will not be otherwise in some seconds.
      const first = problem?.status >= 400 && problem.status < 500 ? LONGEST_RETRY_MS : parser.retry ?? RETRY_MS;
      await sleep(Math.max(problem?.retryAfter ?? 0, backoff(first, failures, LONGEST_RETRY_MS)), signal);
    }
  }

  async stream(parser, signal) {
    const attempt = new AbortController();
    const both = AbortSignal.any([signal, attempt.signal]);
    let watchdog = setTimeout(() => attempt.abort(), FIRST_EVENT_MS);
    try {
      const accept = { accept: "text/event-stream" };
      const url = address("/api/realtime/stream", { site: this.site });
      const response = await request(url, both, { cache: "no-store", headers: accept });
      if (!response.ok) throw await refusal(response);
      if (!response.headers.get("content-type")?.startsWith("text/event-stream")) throw new ApiError(t("notJson"));
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        for (const { event, data } of parser.push(value)) {
          if (event !== "realtime" || signal.aborted) continue;
          const answer = JSON.parse(data);
          if (!this.streaming) {
            this.streaming = true;
            this.poller.stop();
            this.poller.error = null;
            this.poller.failures = 0;
            this.stale = 0;
            this.changed();
          }
          this.answered(answer);
        }
        if (!this.streaming) continue;
        clearTimeout(watchdog);
        watchdog = setTimeout(() => attempt.abort(), SILENCE_MS);
      }
    } finally {
      clearTimeout(watchdog);
      attempt.abort();
    }
  }

  async poll(signal) {
    const { body, stale, etag } = await ask("/api/realtime/", { site: this.site }, signal, { etag: this.etag });
    if (signal.aborted) return;
    this.etag = etag;
    this.stale = stale;
    this.answeredAt = Date.now();
    if (body) this.answered(body);
  }
}

function sleep(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    });
  });
}
