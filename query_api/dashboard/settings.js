// What a reader sets once: time zone, language, light or dark.

import { $, element, keyed, setText } from "./dom.js";
import { LANGUAGES, language, t } from "./language.js";
import { remember, remembered } from "./store.js";
import { browserZone, setZone, zone, zones } from "./zone.js";

const THEMES = ["system", "light", "dark"];

showTheme();

function showTheme() {
  const theme = remembered("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
  else delete document.documentElement.dataset.theme;
}

/** `zoneChanged()` is called when times are to be told anew. */
export function buildSettings(zoneChanged) {
  const option = (value, text) => element("option", { value, text });
  // Some hundred names: made when they are looked for.
  const fill = () => keyed($("zone"), zones(), (name) => name,
    (name) => option(name, name === browserZone ? t("zoneOfBrowser", { zone: name }) : name.replaceAll("_", " ")));
  $("zone").append(option(zone(), zone()));
  $("settings").addEventListener("beforetoggle", () => {
    fill();
    $("zone").value = zone();
  });
  $("zone").addEventListener("change", () => {
    setZone($("zone").value);
    zoneChanged();
  });

  keyed($("language"), Object.keys(LANGUAGES), (name) => name, (name) => option(name, LANGUAGES[name]));
  $("language").value = language;
  $("language").addEventListener("change", () => {
    // Every text and every formatter is another: begin anew. (The page remembers `lang`.)
    const url = new URL(location.href);
    url.searchParams.set("lang", $("language").value);
    location.assign(url);
  });

  keyed($("theme"), THEMES, (name) => name, (name) => element("label", {},
    element("input", { type: "radio", name: "theme", value: name, autocomplete: "off" }),
    element("span", { text: t(`theme_${name}`) })));
  const chosen = document.documentElement.dataset.theme ?? "system";
  for (const radio of $("theme").querySelectorAll("input")) radio.checked = radio.value === chosen;
  $("theme").addEventListener("change", (event) => {
    if (event.target.value === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = event.target.value;
    remember("theme", event.target.value);
  });
  setText($("settings-open"), t("settings"));
}
