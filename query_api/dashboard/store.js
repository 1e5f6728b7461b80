// What the browser remembers for us. Storage may be forbidden; then a choice lasts as long as the page.

const read = (storage, name) => {
  try {
    return window[storage].getItem(`liveinsight-${name}`);
  } catch {
    return null;
  }
};

const write = (storage, name, value) => {
  try {
    window[storage].setItem(`liveinsight-${name}`, value);
  } catch {
    // Not kept.
  }
};

/** Choices of this browser. */
export const remembered = (name) => read("localStorage", name);
export const remember = (name, value) => write("localStorage", name, value);

/** Secrets of this tab: gone when it is closed. */
export const kept = (name) => read("sessionStorage", name);
export const keep = (name, value) => write("sessionStorage", name, value);
