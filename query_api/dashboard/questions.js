// The questions about the range: each is asked when its answer may have changed, as seldom as will do.
//
// A question is due when it has become another (view, tab), when the live feed has told of newer events than its
// answer counts (at most once in `every` ms), and otherwise every few minutes. Two are on their way at most.

import { ApiError, address, ask, now } from "./api.js";
import { asOf } from "./dimensions.js";
import { t } from "./language.js";
import { backoff } from "./poller.js";

const AT_ONCE = 2;
const QUIET_MS = 300_000; // figures that nothing new changes: only late events could
const SOON_MS = 1_000; // for a prompt question that was asked seldom of late
const MOST_SPARED = 4; // so many times `every` may be saved up for it
const MOST_BEHIND = 4; // answers that still do not count the newest event: then it is not asked again for that one
const STALE_MS = 10_000; // the database did not answer: perhaps it does now
const FAILED_MS = 5_000;
const LONGEST_WAIT_MS = 30_000;

export class Question {
  /**
   * `asked`: `make()`: {path, parameters, previous (parameters that ask for the previous period too)}, or null for
   * nothing to ask. `every()`: ms. `show(answer)`, `problem(text)`, `pending(flag)`: for its panel. `open()`: whether its answer
   * changes with what happens now. `resting()`: whether nobody sees the answer. `prompt`: it is cheap, and looked at
   * first: on a calm site it is asked at once, and only on a busy one every `every()`.
   */
  constructor(asked) {
    const nothing = () => {};
    Object.assign(this, { prompt: false, problem: nothing, pending: nothing, resting: () => false }, asked);
    this.forget();
  }

  forget() {
    this.giveUp();
    this.shownKey = null; // what the answer shown is for
    this.askedKey = null;
    this.askedAt = -Infinity;
    this.failures = 0;
    this.error = null;
    this.retryAt = 0;
    this.countedTo = NaN; // ms, of the newest event in the answer shown
    this.spared = 0; // ms that were waited beyond `every`
    this.behind = 0; // how many answers in a row did not count what the live feed knew of
    this.previous = null;
    this.answered = null;
    this.stale = 0;
  }

  giveUp() {
    this.running?.abort();
    this.running = null;
  }

  /** What is to be asked by now: `made` and, as its address, `key`; null for nothing. */
  look() {
    this.made = this.make();
    this.key = this.made && address(this.made.path, this.made.parameters).href;
  }
}

export class Questions {
  /** `changed()`: an answer or an error has come. */
  constructor(questions, changed) {
    this.questions = questions;
    this.changed = changed;
    this.newest = NaN; // ms, of the newest event that the live feed told of
    this.stopped = true;
  }

  /** Ask what is due from now on. */
  start() {
    this.stopped = document.hidden;
    this.run();
  }

  stop() {
    this.stopped = true;
    clearTimeout(this.timer);
    for (const question of this.questions) question.giveUp();
  }

  /** What is on the page belongs to another view: everything is due, and what fails is tried at once. */
  renew({ forget = false } = {}) {
    for (const question of this.questions) {
      if (forget) question.forget();
      question.retryAt = 0;
    }
    this.run();
  }

  /** The live feed knows of an event at `newest` (ms). */
  moved(newest) {
    if (!(newest > this.newest) && !Number.isNaN(this.newest)) return;
    this.newest = newest;
    this.run();
  }

  /** Those that the view has and that have been asked. */
  get active() {
    return this.questions.filter((question) => question.askedKey !== null && question.made);
  }

  /** The error, if all that is looked at fails. */
  get outage() {
    const upToDate = (question) => question.answered && question.shownKey === question.key && !question.resting();
    const asked = this.active.filter((question) => question.error || upToDate(question));
    return asked.length > 0 && asked.every((question) => question.error) ? asked[0].error : null;
  }

  get stale() {
    return Math.max(0, ...this.active.map((question) => question.stale));
  }

  /** When a question is due (ms). */
  due(question, outage) {
    const { made, key } = question;
    if (!made || question.running) return Infinity;
    // While nothing is answered, one question is enough to see when that is over.
    if (outage && question.error && question !== this.active[0]) return Infinity;
    if (question.error && question.askedKey === key) return question.retryAt;
    if (question.shownKey !== key) return question.answered && question.resting() ? Infinity : 0;
    if (question.resting() && !question.stale) return Infinity;
    let wait = QUIET_MS;
    if (question.open() && !Number.isNaN(this.newest) && !(question.countedTo >= this.newest)) {
      const { behind } = question;
      if (behind <= MOST_BEHIND || this.newest > question.askedNewest) wait = question.every();
      if (question.prompt && behind <= MOST_BEHIND && question.spared >= 0) wait = SOON_MS;
    }
    if (question.stale) wait = Math.min(wait, STALE_MS);
    return question.askedAt + wait;
  }

  run() {
    clearTimeout(this.timer);
    if (this.stopped || document.hidden) return;
    for (const question of this.questions) {
      question.look();
      if (question.running && question.askedKey !== question.key) question.giveUp();
    }
    const outage = this.outage !== null;
    let under = this.questions.filter((question) => question.running).length;
    let next = Infinity;
    for (const question of this.questions) {
      const at = this.due(question, outage);
      if (at > Date.now()) next = Math.min(next, at);
      else if (under < AT_ONCE) {
        under += 1;
        this.put(question);
      }
    }
    if (next < Infinity) this.timer = setTimeout(() => this.run(), Math.max(50, next - Date.now()));
  }

  async put(question) {
    const { made, key } = question;
    const running = new AbortController();
    question.running = running;
    if (question.askedKey !== key) question.failures = 0;
    question.askedKey = key;
    const every = question.every();
    const spared = question.spared + Date.now() - question.askedAt - every;
    question.spared = Math.min(MOST_SPARED * every, spared);
    question.askedAt = Date.now();
    const { newest } = this;
    question.askedNewest = newest;
    question.pending(question.shownKey !== key);
    const known = question.previous?.key === key ? question.previous.value : null;
    const parameters = { ...made.parameters, ...(known ? {} : made.previous) };
    try {
      const { body, stale } = await ask(made.path, parameters, running.signal);
      if (running.signal.aborted) return;
      if (body.previous && made.previous) question.previous = { key, value: body.previous };
      question.show({ ...body, previous: made.previous ? body.previous ?? known : null });
      const counted = asOf(body);
      // An answer that does not tell what it counts is taken to count all.
      question.countedTo = Number.isNaN(counted) ? newest : counted;
      question.behind = counted < newest ? question.behind + 1 : 0;
      Object.assign(question, { shownKey: key, stale, failures: 0, error: null, answered: now() });
      question.problem("");
      question.pending(false);
    } catch (error) {
      if (running.signal.aborted) return;
      if (!(error instanceof ApiError)) console.error(error);
      question.failures += 1;
      question.error = error;
      const told = Math.min(error.retryAfter || 0, LONGEST_WAIT_MS);
      question.retryAt = Date.now() + Math.max(told, backoff(FAILED_MS, question.failures, LONGEST_WAIT_MS));
    }
    question.running = null;
    this.recover();
    this.changed();
    this.run();
  }

  /** After an outage everything is tried at once; during one, no panel says it on its own. */
  recover() {
    const over = this.wasOut && this.outage === null;
    this.wasOut = this.outage !== null;
    for (const question of this.active) {
      if (over && question.error) question.retryAt = 0;
      if (!question.error || this.wasOut || over) question.problem("");
      else {
        const why = question.error instanceof ApiError ? question.error.message : t("notAsAgreed");
        question.problem(t("notUpToDate", { why }));
      }
    }
  }
}
