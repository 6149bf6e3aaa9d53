/** Requests to the server's API: with the key, with errors as the API tells them. */
import { reached, unreachable } from './connection.js';
import { currentKey } from './key.js';
import { Store } from './store.js';

/** The server's root: this file lies three folders below it, also behind a proxy with a prefix. */
export const ROOT = new URL('../../../', import.meta.url);

/** How often a key was refused: whoever asks for one watches this. */
export const refusals = new Store(0);

/** What a server says against a request. */
export class ApiError extends Error {
  /**
   * @param {number} status
   * @param {string} message
   * @param {{code?: string | null, param?: string | null, requestId?: string | null, retryAfter?: number | null}} [told]
   */
  constructor(status, message, told = {}) {
    super(message);
    this.name = 'ApiError';
    this.status = status;
    this.code = told.code ?? null;
    this.param = told.param ?? null;
    this.requestId = told.requestId ?? null;
    /** @type {number | null} seconds */
    this.retryAfter = told.retryAfter ?? null;
  }
}

/** There was no answer, or it broke off. */
export class ConnectionLost extends Error {
  /** @param {string} [message] */
  constructor(message = 'The server can’t be reached.') {
    super(message);
    this.name = 'ConnectionLost';
  }
}

/**
 * @typedef {object} Options
 * @property {string} [method]
 * @property {unknown} [body] an object that is sent as JSON, or a form
 * @property {AbortSignal} [signal]
 * @property {Record<string, string>} [headers]
 */

/**
 * The answer to a request, once its headers are there.
 * @param {string} path below the root, such as 'v1/models'
 * @param {Options} [options]
 * @returns {Promise<Response>}
 * @throws {ApiError} the server refused
 * @throws {ConnectionLost} there is no answer
 */
export async function ask(path, options = {}) {
  const { body } = options;
  const form = body instanceof FormData || body instanceof Blob;
  /** @type {Record<string, string>} */
  const headers = { accept: 'application/json', ...options.headers };
  if (currentKey()) headers.authorization = `Bearer ${currentKey()}`;
  if (body !== undefined && !form) headers['content-type'] = 'application/json';
  let response;
  try {
    response = await fetch(new URL(path, ROOT), {
      method: options.method ?? (body === undefined ? 'GET' : 'POST'),
      headers,
      body: body === undefined ? undefined : form ? body : JSON.stringify(body),
      signal: options.signal,
      credentials: 'omit',
      cache: 'no-store',
    });
  } catch (error) {
    if (isAbort(error)) throw error;
    unreachable();
    throw new ConnectionLost();
  }
  reached();
  if (!response.ok) throw await refusal(response);
  return response;
}

/**
 * The JSON of an answer.
 * @param {string} path
 * @param {Options} [options]
 * @returns {Promise<any>}
 */
export async function askJson(path, options = {}) {
  const response = await ask(path, options);
  try {
    return response.status === 204 ? null : await response.json();
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ConnectionLost('The connection broke off.');
  }
}

/** @param {unknown} error whether it only says that we ended the request ourselves */
export function isAbort(error) {
  return error instanceof DOMException && error.name === 'AbortError';
}

/** @param {Response} response that is no success; what it says against the request */
export async function refusal(response) {
  let told;
  try {
    told = (await response.json()).error;
  } catch {
    told = null; // not from our server, or cut short
  }
  if (response.status === 401) refusals.set(refusals.value + 1);
  const wait = Number(response.headers.get('retry-after'));
  return new ApiError(response.status, told?.message ?? `The server answered ${response.status}.`, {
    code: told?.code,
    param: told?.param,
    requestId: response.headers.get('x-request-id'),
    retryAfter: wait > 0 ? wait : null,
  });
}
