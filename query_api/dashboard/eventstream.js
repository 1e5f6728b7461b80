// Server-sent events from a fetch() body: EventSource cannot send the read key.

/** Takes text as it comes, in any pieces, and gives the events that are whole: [{event, data, id}]. */
export class EventParser {
  constructor() {
    this.rest = "";
    this.retry = null; // ms that the server wants us to wait before we come back
    this.clear();
  }

  clear() {
    this.event = "message";
    this.id = "";
    this.data = [];
  }

  push(text) {
    const events = [];
    this.rest += text;
    // A CR at the very end may be half of a CR LF.
    const lines = this.rest.split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (this.data.length) events.push({ event: this.event, data: this.data.join("\n"), id: this.id });
        this.clear();
      } else this.take(line);
    }
    return events;
  }

  take(line) {
    const colon = line.indexOf(":");
    if (colon === 0) return; // a comment
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.data.push(value);
    else if (field === "event") this.event = value;
    else if (field === "id") this.id = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.retry = Number(value);
  }
}
