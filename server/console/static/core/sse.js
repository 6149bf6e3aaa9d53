/** Server-sent events, read from the body of an answer: unlike EventSource it takes a key and a body. */
import { ApiError, ConnectionLost, ask, isAbort } from './http.js';

/**
 * @typedef {object} StreamEvent
 * @property {string} event its name; 'message' where it has none
 * @property {string} data
 */

/** Cuts text that comes in any pieces into events. */
export class EventParser {
  constructor() {
    this.rest = '';
    this.event = '';
    /** @type {string[]} */
    this.data = [];
  }

  /**
   * @param {string} text what has come
   * @returns {StreamEvent[]} the events that it completes
   */
  push(text) {
    const lines = (this.rest + text).split(/\r\n|\n|\r(?!$)/);
    this.rest = lines.pop() ?? '';
    return lines.flatMap((line) => this.line(line));
  }

  /**
   * @param {string} line
   * @returns {StreamEvent[]}
   */
  line(line) {
    if (line === '') {
      const { data, event } = this;
      this.data = [];
      this.event = '';
      return data.length ? [{ event: event || 'message', data: data.join('\n') }] : [];
    }
    const colon = line.indexOf(':');
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (name === 'data') this.data.push(value);
    else if (name === 'event') this.event = value;
    return []; // a comment begins with a colon: its name is empty
  }
}

/**
 * The events of an answer, as they come.
 * @param {Response} response
 * @returns {AsyncGenerator<StreamEvent>}
 * @throws {ConnectionLost} the connection broke off
 */
export async function* readEvents(response) {
  const reader = response.body?.pipeThrough(new TextDecoderStream()).getReader();
  if (!reader) return;
  const parser = new EventParser();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(value);
    }
  } catch (error) {
    if (isAbort(error)) throw error;
    throw new ConnectionLost('The connection broke off before the answer was complete.');
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading also stops the server
  }
}

/**
 * The objects of a streamed answer of the OpenAI API.
 * @param {string} path
 * @param {object} body sent with stream: true
 * @param {AbortSignal} [signal] ends it
 * @returns {AsyncGenerator<any>}
 * @throws {ApiError} refused, or a fault in the stream
 * @throws {ConnectionLost} it ended before [DONE]
 */
export async function* stream(path, body, signal) {
  const response = await ask(path, { body: { ...body, stream: true }, signal, headers: { accept: 'text/event-stream' } });
  for await (const { data } of readEvents(response)) {
    if (data === '[DONE]') return;
    const told = JSON.parse(data);
    if (told.error) throw new ApiError(500, told.error.message, told.error);
    yield told;
  }
  throw new ConnectionLost('The connection broke off before the answer was complete.');
}
