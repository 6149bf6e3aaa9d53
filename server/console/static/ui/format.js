/** Numbers, sizes and times as people read them. */

const COUNT = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

/** @param {number} value */
export function count(value) {
  return COUNT.format(value);
}

/** @param {number} value with about so many digits that say something */
export function short(value, digits = 3) {
  if (value === 0) return '0';
  return Math.abs(value) >= 10 ** digits ? COUNT.format(value) : String(Number(value.toPrecision(digits)));
}

/** @param {number} size in bytes */
export function bytes(size) {
  let at = 0;
  let value = size;
  while (value >= 1024 && at < UNITS.length - 1) { value /= 1024; at += 1; }
  return `${value >= 100 || at === 0 ? Math.round(value) : value.toFixed(1)} ${UNITS[at]}`;
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${seconds.toFixed(2)} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

/** @param {number} unix in seconds */
export function when(unix) {
  return new Date(unix * 1000).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' });
}

/** @param {number} unix in seconds */
export function ago(unix) {
  const seconds = Math.max(0, Date.now() / 1000 - unix);
  if (seconds < 60) return 'just now';
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86_400) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86_400)} d ago`;
}

/** @param {number} share of 1 */
export function percent(share) {
  return `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

/** @param {string} text so that what can't be seen can */
export function visible(text) {
  if (text === '') return '∅';
  return text.replaceAll('\n', '⏎').replaceAll('\t', '⇥').replace(/^ +| +$/g, (blanks) => '␣'.repeat(blanks.length));
}

/** @param {number} unix in seconds; the time of day */
export function clock(unix) {
  return new Date(unix * 1000).toLocaleTimeString(undefined, { hour: '2-digit', minute: '2-digit', second: '2-digit' });
}

/** @param {number} unix in seconds; the day, of UTC as usage is counted */
export function day(unix) {
  return new Date(unix * 1000).toLocaleDateString(undefined, { day: 'numeric', month: 'short', timeZone: 'UTC' });
}

/** @param {number} unix in seconds; without the year */
export function moment(unix) {
  return new Date(unix * 1000).toLocaleString(undefined, { day: 'numeric', month: 'short', hour: '2-digit', minute: '2-digit' });
}
