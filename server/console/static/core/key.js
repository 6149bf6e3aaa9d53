/**
 * The API key: in this page's memory, or in the session storage of this tab if that is asked for.
 * It is never in a cookie, so no other page's requests act with it, and never in a URL.
 */

const NAME = 'manylora.key';

/** @type {string} */
let held = read();

function read() {
  try {
    return sessionStorage.getItem(NAME) ?? '';
  } catch {
    return ''; // a browser without storage
  }
}

/** The key that requests are sent with; '' for none. */
export function currentKey() {
  return held;
}

/**
 * @param {string} key '' forgets the one there is
 * @param {boolean} [keep] also when the page is loaded again in this tab
 */
export function setKey(key, keep = false) {
  held = key;
  try {
    if (keep && key) sessionStorage.setItem(NAME, key);
    else sessionStorage.removeItem(NAME);
  } catch {
    // it stays in memory
  }
}
