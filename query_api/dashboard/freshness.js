// How fresh the page is: one line that says so, and notices when figures are old or cannot be had at all.

import { ApiError, now } from "./api.js";
import { $, setText, setTitle } from "./dom.js";
import { ago, at, clockSeconds, duration } from "./format.js";
import { t } from "./language.js";

const BEHIND_S = 3; // a lag that is worth a word

/** `live`: the feed; `questions`: those of the range; `realtime`: the newest realtime answer or null. */
export function showFreshness(live, questions, realtime) {
  const error = live.error ?? questions.outage;
  const loading = live.answeredAt === null;
  const staleFor = Math.max(live.stale, questions.stale);
  const state = error ? "failing" : loading ? "loading" : staleFor > 0 ? "stale" : live.streaming ? "live" : "polling";
  $("freshness").dataset.state = state;
  setText($("updated"), t(`state_${state}`));
  const newest = at(realtime?.as_of ?? undefined);
  setText($("latest"), Number.isFinite(newest) ? t("newestEvent", { ago: ago(Math.max(0, now() - newest)) }) : "");
  setTitle($("latest"), Number.isFinite(newest) ? t("newestEventAt", { time: clockSeconds(newest) }) : "");
  const lag = realtime?.lag;
  setText($("lag"), lag >= BEHIND_S ? t("behind", { duration: duration(lag) }) : "");

  const stale = staleFor > 0 && !error;
  $("stale").hidden = !stale;
  if (stale) setText($("stale-text"), t("staleSince", { time: clockSeconds(now() - staleFor * 1000) }));

  const outage = error && !error.wantsKey;
  $("outage").hidden = !outage;
  if (!outage) return;
  setText($("outage-cause"), error instanceof ApiError ? error.message : t("notAsAgreed"));
  const answered = questions.active.map((question) => question.answered).filter(Boolean);
  const shown = Math.max(live.answeredAt ?? -Infinity, ...answered);
  setText($("outage-consequence"), Number.isFinite(shown)
    ? t("outageShows", { time: clockSeconds(shown) }) : t("outageNothing"));
}
