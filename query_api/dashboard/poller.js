// Something that is done again and again: after an interval when it went well, later and later when it did not.

import { ApiError } from "./api.js";

const LONGEST_WAIT_MS = 30_000;

/** How long to wait after so many failures (ms): longer each time, and not all dashboards at once. */
export function backoff(first, failures, longest = LONGEST_WAIT_MS) {
  return Math.min(longest, first * 2 ** (failures - 1)) * (0.75 + Math.random() / 2);
}

export class Poller {
  /** `work(signal)` every `interval` ms; `changed()` is told after each round. */
  constructor(work, interval, changed) {
    this.work = work;
    this.interval = interval;
    this.changed = changed;
    this.failures = 0;
    this.error = null;
    this.running = null;
  }

  /** Begin at once, giving up what is under way; in a hidden tab only give it up. */
  restart() {
    this.stop();
    if (!document.hidden) this.round();
  }

  stop() {
    clearTimeout(this.timer);
    this.running?.abort();
    this.running = null;
  }

  async round() {
    const running = new AbortController();
    this.running = running;
    let wait = this.interval;
    try {
      await this.work(running.signal);
      if (running.signal.aborted) return;
      this.failures = 0;
      this.error = null;
    } catch (error) {
      if (running.signal.aborted) return;
      if (!(error instanceof ApiError)) console.error(error);
      this.failures += 1;
      this.error = error;
      wait = Math.max(backoff(this.interval, this.failures), Math.min(error.retryAfter || 0, LONGEST_WAIT_MS));
    }
    this.timer = setTimeout(() => this.round(), wait);
    this.changed();
  }
}
