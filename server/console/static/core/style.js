/** Style sheets that come with what needs them. */

/** @type {Map<string, Promise<void>>} */
const begun = new Map();

/**
 * Add a style sheet to the page, once; resolved when it holds.
 * @param {string} path below the console's folder, such as 'views/server/style.css'
 */
export function addStyle(path) {
  const known = begun.get(path);
  if (known) return known;
  const added = new Promise((/** @type {(value: void) => void} */ resolve, reject) => {
    const link = document.createElement('link');
    link.rel = 'stylesheet';
    link.href = new URL(`../${path}`, import.meta.url).href;
    link.onload = () => resolve();
    link.onerror = () => { link.remove(); begun.delete(path); reject(new Error(`${path} could not be loaded`)); };
    document.head.append(link);
  });
  begun.set(path, added);
  return added;
}
