/** Whether the server answers; if not, it is asked again, less and less often, until it does. */
import { Store } from './store.js';

/**
 * @typedef {object} Connection
 * @property {boolean} online
 * @property {number} epoch counts how often the server came back: what was read before may have changed
 * @property {number} retryAt when it is asked next, in ms since 1970
 */

export const connection = new Store(/** @type {Connection} */ ({ online: true, epoch: 0, retryAt: 0 }));

const HEALTH = new URL('../../../health', import.meta.url);
const FIRST_DELAY = 500; // ms
const LONGEST_DELAY = 8000;
const LOOK_EVERY = 10_000;
const ANSWERS_WITHIN = 5000;

let delay = FIRST_DELAY;
/** @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

/** Note that a request got an answer. */
export function reached() {
  clearTimeout(timer);
  timer = undefined;
  delay = FIRST_DELAY;
  const { online, epoch } = connection.value;
  if (!online) connection.set({ online: true, epoch: epoch + 1, retryAt: 0 });
}

/** Note that one got none, and begin to try again. */
export function unreachable() {
  if (timer !== undefined) return;
  const wait = delay * (0.75 + Math.random() / 2);
  delay = Math.min(delay * 2, LONGEST_DELAY);
  connection.patch({ online: false, retryAt: Date.now() + wait });
  timer = setTimeout(tryNow, wait);
}

/** Ask now instead of later. */
export async function tryNow() {
  clearTimeout(timer);
  timer = undefined;
  await look();
}

async function look() {
  try {
    await fetch(HEALTH, { credentials: 'omit', cache: 'no-store', signal: AbortSignal.timeout(ANSWERS_WITHIN) });
  } catch (error) {
    if (connection.value.online && error instanceof DOMException) return; // slow is not gone
    unreachable();
    return;
  }
  reached();
}

/** Look now and then, so that a page where nobody does anything tells the truth as well. */
export function watchConnection() {
  setInterval(() => {
    if (!document.hidden && connection.value.online) void look();
  }, LOOK_EVERY);
  document.addEventListener('visibilitychange', () => {
    if (!document.hidden && connection.value.online) void look();
  });
}
