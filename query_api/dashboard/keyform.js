// The form that asks for the site's read key, where the API wants one.

import { hasKey, setKey } from "./api.js";
import { $, setText } from "./dom.js";
import { t } from "./language.js";

/** `retry()` is called with a new key in place. */
export function buildKeyForm(retry) {
  $("key").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!$("key-input").value.trim()) {
      setText($("key-problem"), t("keyEmpty"));
      return;
    }
    setKey($("key-input").value);
    setText($("key-problem"), "");
    hideKeyForm();
    retry();
  });
}

/** Nothing else is shown: without the key there is nothing to see. */
export function showKeyForm(error) {
  const shown = document.body.classList.contains("locked");
  setText($("key-problem"), hasKey() ? error.message : "");
  document.body.classList.add("locked");
  $("key").hidden = false;
  if (!shown) $("key-input").focus();
}

export function hideKeyForm() {
  document.body.classList.remove("locked");
  $("key").hidden = true;
  $("key-input").value = "";
}
