/** Text inside markup that is written as text: files that are downloaded, and what the sanitizer reads. */

/** @param {unknown} text what anybody wrote */
export function escaped(text) {
  return String(text).replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
}
