// LiveInsight tracker
try { // nothing surfaces in the page
const guard = (run) => (...args) => { try { return run(...args); } catch (e) {} };
const on = (type, run) => addEventListener(type, guard(run), true);
const later = (run, ms) => setTimeout(guard(run), ms);
const near = (time, ms) => Math.abs(Date.now() - time) < ms;
const id = () => guard(() => crypto.randomUUID())() || Math.random() + "" + Math.random();
// Half a surrogate pair is refused.
const cut = (text, max) => typeof text == "string" ? text.slice(0, max).replace(/[\0\ud800-\udfff]/gu, "") : "";

const { src = "", dataset } = document.currentScript || {};
let { site = "default", api = src.split("/", 3).join("/") } = dataset || {};
let store = {}; // or localStorage
let queue = [], flying = [], calls = [], failures = 0;
let timer, left, started, page, referrer, depth, viewing, scrolling;
// (source, seq) never comes twice: both die with the page.
const source = id(), seqs = {};

const key = (name) => `liveinsight:${site}:${name}`;
const save = guard((name, value) => store[key(name)] = value);
// Passive: neither begins nor prolongs a session.
const session = (passive) => {
  let [current, last] = (store[key("session")] || "").split(" ");
  if (!near(last, 18e5)) current = passive ? "" : id();
  if (!passive) save("session", current + " " + Date.now());
  return current;
};

const without = (gone) => queue.filter((json) => !gone.includes(json));
// A key for each page: tabs never overwrite each other. Time 0: free to adopt.
const persist = () => {
  while (queue[200]) queue.splice(Math.max(0, queue.findIndex((json) => /^.{15}(heartbeat|scroll)"/.test(json))), 1);
  if (queue[0]) save(source, `[${[left ? 0 : Date.now(), ...queue]}]`);
  else delete store[key(source)];
};
const adopt = () => Object.keys(store).forEach(guard((name) => {
  if (!name.startsWith(key(""))) return;
  const [time, ...events] = JSON.parse(store[name]);
  if (near(time, 12e4)) return;
  delete store[name];
  queue = [...new Set(events.map(JSON.stringify).concat(queue))];
  persist();
  schedule();
}));

const emit = (event_type, fields) => {
  if (!started) return navigator.globalPrivacyControl || calls.push([event_type, fields]);
  view();
  const session_id = session(!fields);
  if (!session_id) return;
  const seq = (seqs[session_id] || 0) + 1;
  const json = JSON.stringify({
    event_type,
    event_id: id(),
    site_id: site,
    session_id,
    user_id: store[key("user")] || save("user", id()),
    source,
    seq,
    timestamp: Date.now(),
    page_url: page,
    ...fields,
  });
  if (json.length > 16e3) return;
  seqs[session_id] = seq;
  queue.push(json);
  persist();
  schedule();
};

const schedule = (delay = 500) => {
  if (!flying[0]) timer = timer || later(flush, delay);
};
// Browsers refuse beacons of 64 KB.
const batchOf = (events) => {
  let bytes = 0;
  return events.filter((json) => (bytes += new Blob([json]).size + 1) < 59900);
};
const url = () => api.replace(/\/*$/, "/events");
const body = (batch) => `{"events":[${batch}],"sent_at":${Date.now()}}`;
const flush = async () => {
  clearTimeout(timer);
  timer = 0;
  if (flying[0] || !queue[0]) return;
  let answer = {};
  try {
    flying = batchOf(queue);
    answer = await fetch(url(), { method: "POST", body: body(flying), keepalive: !failures });
  } catch (e) {}
  const batch = flying;
  flying = [];
  if (/^(2|4(?!08|29))/.test(answer.status)) {
    failures = 0;
    queue = without(batch);
    if (queue[0]) schedule();
  } else {
    const wait = answer.headers && answer.headers.get("Retry-After") * 1000 || 0;
    schedule(Math.min(wait, 36e5) + Math.random() * Math.min(6e4, 1000 * 2 ** failures++));
  }
  persist();
};

const view = () => {
  if (!viewing) return;
  viewing = 0;
  emit("page_view", { referrer, title: cut(document.title, 512), language: navigator.language });
};
const navigated = () => {
  const url = cut(location.href.split("#")[0], 2048);
  if (url == page) return;
  scrolled();
  view();
  referrer = page || cut(document.referrer, 2048);
  page = url;
  depth = 25;
  viewing = 1;
  later(view, 50); // the title comes after the address
};
const clicked = (event) => {
  const node = event.composedPath().find((node) =>
    node.matches && node.matches("a,button,[role=button],[type=button],[type=submit]"));
  if (!node) return;
  emit("click", {
    element_id: cut(node.id, 512),
    element_tag: node.localName,
    // What a visitor typed is never read.
    element_text: node.isContentEditable || node.querySelector("[contenteditable]") ? "" :
      cut(node.textContent.trim().replace(/\s+/g, " "), 100),
    element_href: cut(node.href, 2048),
  });
};
const scrolled = () => {
  if (!scrolling) return;
  scrolling = 0;
  session();
  const reached = scrollY && 100 * (scrollY + innerHeight + 2) / document.scrollingElement.scrollHeight;
  for (; depth <= Math.min(100, reached); depth += 25) emit("scroll", { properties: { depth } });
};
const leave = () => {
  scrolled();
  if (!left) emit("page_exit");
  left = 1;
  let rest = without(flying), batch;
  while ((batch = batchOf(rest))[0] && navigator.sendBeacon(url(), body(batch))) {
    rest = rest.slice(batch.length);
    // A beacon does not tell that it failed.
    if (!failures && navigator.onLine) queue = without(batch);
  }
  persist();
};

const start = () => {
  if (started || !api || navigator.globalPrivacyControl) return;
  if (document.prerendering) return on("prerenderingchange", start);
  started = 1;
  guard(() => {
    localStorage[key("session")] += "";
    store = localStorage;
  })();
  for (const name of ["pushState", "replaceState"]) {
    const original = history[name];
    history[name] = function () {
      const result = original.apply(this, arguments);
      guard(navigated)();
      return result;
    };
  }
  on("popstate", navigated);
  on("click", clicked);
  on("scroll", () => scrolling = scrolling || later(scrolled, 200));
  on("online", flush);
  on("pagehide", leave);
  on("pageshow", (event) => {
    if (event.persisted) viewing = 1;
    view();
  });
  on("visibilitychange", () => document.hidden ? leave() : session(left = 0));
  setInterval(guard(() => {
    adopt();
    if (!document.hidden) emit("heartbeat");
  }), 15e3);
  navigated();
  adopt();
  calls.forEach((call) => emit(...call));
};

const { init, q = [] } = window.LiveInsight || {};
if (!init) {
  const push = guard(([name, ...args]) => LiveInsight[name](...args));
  window.LiveInsight = {
    q: { push },
    init: guard((options) => {
      site = options.site || site;
      api = options.apiUrl || api;
      start();
    }),
    track: guard((name, properties) => emit(cut(name, 64), { properties })),
    trackConversion: guard((type, value, currency) => emit("conversion", {
      conversion_type: cut(type, 128),
      conversion_value: +value,
      conversion_currency: cut(currency, 128),
    })),
  };
  q.forEach(push);
  start();
}
} catch (e) {}
