/** Uploads that say how far they are, which fetch can't. */
import { reached, unreachable } from './connection.js';
import { ConnectionLost, ROOT, refusal } from './http.js';
import { currentKey } from './key.js';

/**
 * @typedef {object} Upload
 * @property {string} path below the root
 * @property {'PUT' | 'POST'} method
 * @property {FormData} form
 * @property {(share: number) => void} [onProgress] of what is sent, from 0 to 1
 * @property {AbortSignal} [signal]
 */

/**
 * Send a form; the JSON of the answer.
 * @param {Upload} upload
 * @returns {Promise<any>}
 * @throws {import('./http.js').ApiError} the server refused
 * @throws {ConnectionLost} there is no answer
 */
export function upload({ path, method, form, onProgress, signal }) {
  const request = new XMLHttpRequest();
  return new Promise((resolve, reject) => {
    request.open(method, new URL(path, ROOT));
    request.setRequestHeader('accept', 'application/json');
    if (currentKey()) request.setRequestHeader('authorization', `Bearer ${currentKey()}`);
    request.upload.onprogress = (event) => { if (event.lengthComputable) onProgress?.(event.loaded / event.total); };
    request.onload = async () => {
      reached();
      if (request.status >= 400) {
        reject(await refusal(new Response(request.responseText, { status: request.status, headers: headersOf(request) })));
        return;
      }
      try {
        resolve(JSON.parse(request.responseText));
      } catch {
        reject(new ConnectionLost('The connection broke off.'));
      }
    };
    request.onerror = () => { unreachable(); reject(new ConnectionLost('The connection broke off while the files were sent.')); };
    request.onabort = () => reject(new DOMException('The upload was ended.', 'AbortError'));
    signal?.addEventListener('abort', () => request.abort(), { once: true });
    request.send(form);
  });
}

/** @param {XMLHttpRequest} request those headers of the answer that errors are told with */
function headersOf(request) {
  const headers = new Headers();
  for (const name of ['x-request-id', 'retry-after']) {
    const value = request.getResponseHeader(name);
    if (value) headers.set(name, value);
  }
  return headers;
}
