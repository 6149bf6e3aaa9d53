/** Where in the console we are: the part of the URL behind '#', which no server sees. */
import { Store } from './store.js';

/**
 * @typedef {object} Route
 * @property {string} path such as 'playground' or 'fleet/support'
 * @property {URLSearchParams} params
 */

/** @returns {Route} */
function read() {
  const [path = '', query = ''] = splitOnce(location.hash.replace(/^#\/?/, ''), '?');
  return { path: safeDecode(path).replace(/\/+$/, ''), params: new URLSearchParams(query) };
}

/**
 * @param {string} text
 * @param {string} mark
 */
function splitOnce(text, mark) {
  const at = text.indexOf(mark);
  return at < 0 ? [text] : [text.slice(0, at), text.slice(at + 1)];
}

/** @param {string} text */
function safeDecode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a stray percent sign
  }
}

/** @type {Store<Route>} */
export const route = new Store(read());

addEventListener('hashchange', () => route.set(read()));

/**
 * The link to a place.
 * @param {string} path its steps are encoded
 * @param {Record<string, string> | URLSearchParams} [params]
 */
export function linkTo(path, params = {}) {
  const query = new URLSearchParams(params).toString();
  return `#/${path.split('/').map(encodeURIComponent).join('/')}${query ? `?${query}` : ''}`;
}

/**
 * The link to a comparison with the base model.
 * @param {string} base
 * @param {string} model
 */
export function besideBase(base, model) {
  return linkTo('arena', new URLSearchParams([['t', base], ['t', model]]));
}

/**
 * Go to a place.
 * @param {string} path
 * @param {Record<string, string> | URLSearchParams} [params]
 */
export function go(path, params = {}) {
  location.hash = linkTo(path, params);
}

/**
 * Say in the URL what the present view shows, without a new entry in the history.
 * @param {Record<string, string> | URLSearchParams} params
 */
export function noteState(params) {
  history.replaceState(null, '', linkTo(route.value.path, params));
}
