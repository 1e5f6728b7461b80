// Page views and events that have come since the summary was made. The live feed tells of them at once and for nothing,
// so that the figures of the range follow within a second or two, while the summary itself is asked for seldom.

import { asOf } from "./dimensions.js";
import { at } from "./format.js";

const KEPT = 32;

export class SinceSummary {
  constructor() {
    this.clear();
  }

  clear() {
    this.answers = []; // realtime answers: {asOf, minutes: Map of ms -> {events, page_views}}
  }

  take(realtime) {
    const minutes = new Map(realtime.minutes.map((minute) => [at(minute.minute), minute]));
    this.answers.push({ asOf: asOf(realtime), minutes });
    if (this.answers.length > KEPT) this.answers.shift();
  }

  /**
   * {events, page_views} to add to a summary that counts up to `counted` (ms). What came between it and the first
   * realtime answer after it is left out until the next summary: nothing is ever counted twice.
   */
  count(counted) {
    const base = this.answers.find((answer) => answer.asOf >= counted);
    const newest = this.answers.at(-1);
    const more = { events: 0, page_views: 0 };
    if (!base || base === newest) return more;
    const first = Math.min(...base.minutes.keys());
    for (const [minute, { events, page_views: views }] of newest.minutes) {
      if (minute < first) continue;
      const before = base.minutes.get(minute);
      more.events += Math.max(0, events - (before?.events ?? 0));
      more.page_views += Math.max(0, views - (before?.page_views ?? 0));
    }
    return more;
  }
}
