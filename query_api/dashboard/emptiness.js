// What is shown where there is nothing to show: how to install the tracker, or that this range is quiet.

import { $, setText } from "./dom.js";
import { clip } from "./format.js";
import { t } from "./language.js";
import { view } from "./view.js";

export function buildEmptiness() {
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("install-line").textContent);
      setText($("copy"), t("copied"));
    } catch {
      getSelection().selectAllChildren($("install-line"));
      setText($("copy"), t("selected"));
    }
    setTimeout(() => setText($("copy"), t("copy")), 3_000);
  });
}

/** `known`: whether the site has figures at all. */
export function showEmptiness(empty, known) {
  $("empty").hidden = !empty;
  if (!empty) return;
  const site = clip(view.site, 64);
  setText($("empty-title"), t(known ? "quietTitle" : "noDataTitle", { site }));
  setText($("empty-text"), t(known ? "quietText" : "noDataText"));
  const attribute = view.site.replaceAll("&", "&amp;").replaceAll('"', "&quot;").replaceAll("<", "&lt;");
  const source = "https://YOUR-COLLECTOR/liveinsight.js";
  setText($("install-line"), `<script async src="${source}" data-site="${attribute}"></script>`);
}
