/** One streamed answer: what has come of it, how fast, and how it ended. */
import { ApiError, ConnectionLost, isAbort } from '../core/http.js';
import { stream } from '../core/sse.js';

/**
 * @typedef {object} Token
 * @property {string} text
 * @property {number} logprob
 * @property {{text: string, logprob: number}[]} top the likeliest in its place
 */

/**
 * @typedef {object} Call
 * @property {string} id
 * @property {string} name
 * @property {string} args JSON, as the model wrote it
 */

/**
 * @typedef {object} Answer
 * @property {string} text
 * @property {string} reasoning
 * @property {Call[]} calls
 * @property {Token[]} tokens empty unless their probabilities were asked for
 * @property {string} id by which the server knows it
 * @property {string} model what answered, by revision
 * @property {number} count of tokens that this request made
 * @property {number | null} first ms until the first token
 * @property {number} total ms from the request until now, or until its end
 * @property {string} finish why it ended; 'stopped' by us, 'error', '' while it goes on
 * @property {string} fault what went wrong
 * @property {{prompt_tokens: number, completion_tokens: number, prompt_tokens_details?: {cached_tokens: number}} | null} usage
 */

/** @returns {Answer} */
export function emptyAnswer() {
  return {
    text: '', reasoning: '', calls: [], tokens: [], id: '', model: '', count: 0, first: null, total: 0, finish: '', fault: '', usage: null,
  };
}

const DECODER = new TextDecoder();

/** @param {any} entry of log-probabilities */
function textOf(entry) {
  return entry.bytes ? DECODER.decode(new Uint8Array(entry.bytes)) : entry.token;
}

/**
 * Ask for an answer and tell of it as it comes; it never throws.
 * @param {object} body of a chat
 * @param {AbortSignal} signal stops it
 * @param {(answer: Answer) => void} tell called with all that there is so far, at most once a frame
 * @param {Answer} [begun] what it goes on with
 * @returns {Promise<Answer>} the whole answer
 */
export async function readAnswer(body, signal, tell, begun = emptyAnswer()) {
  const began = performance.now();
  /** @type {Answer} */
  let answer = { ...begun, finish: '', fault: '', count: 0, first: null };
  let waiting = 0;
  const told = () => {
    if (waiting) return;
    waiting = setTimeout(() => { waiting = 0; tell({ ...answer, total: performance.now() - began }); }, 32);
  };
  try {
    for await (const chunk of stream('v1/chat/completions', { ...body, stream_options: { include_usage: true } }, signal)) {
      answer = withChunk(answer, chunk, performance.now() - began);
      told();
    }
  } catch (error) {
    answer = isAbort(error) ? { ...answer, finish: 'stopped' } : { ...answer, finish: 'error', fault: faultText(error) };
  }
  clearTimeout(waiting);
  answer.total = performance.now() - began;
  tell(answer);
  return answer;
}

/** @param {unknown} error */
function faultText(error) {
  if (error instanceof ApiError && error.retryAfter) return `${error.message} Try again in ${error.retryAfter} s.`;
  if (error instanceof ApiError || error instanceof ConnectionLost) return error.message;
  return `The answer could not be read: ${error instanceof Error ? error.message : error}`;
}

/**
 * @param {Answer} answer
 * @param {any} chunk
 * @param {number} now ms since the request
 * @returns {Answer}
 */
function withChunk(answer, chunk, now) {
  const next = { ...answer, id: chunk.id, model: chunk.model };
  if (chunk.usage) {
    next.usage = chunk.usage;
    next.count = chunk.usage.completion_tokens;
  }
  const choice = chunk.choices[0];
  if (!choice) return next;
  const { delta, logprobs } = choice;
  if (delta.content) next.text += delta.content;
  const thought = delta.reasoning_content ?? delta.reasoning;
  if (thought) next.reasoning += thought;
  for (const piece of delta.tool_calls ?? []) next.calls = withCall(next.calls, piece);
  const entries = logprobs?.content ?? [];
  if (entries.length) {
    next.tokens = [...next.tokens, ...entries.map((/** @type {any} */ entry) => ({
      text: textOf(entry),
      logprob: entry.logprob,
      top: entry.top_logprobs.map((/** @type {any} */ each) => ({ text: textOf(each), logprob: each.logprob })),
    }))];
  }
  if (delta.content || thought || delta.tool_calls || entries.length) {
    next.first ??= now;
    if (!chunk.usage) next.count += entries.length || 1;
  }
  if (choice.finish_reason) next.finish = choice.finish_reason;
  return next;
}

/** @param {Call[]} calls @param {any} piece */
function withCall(calls, piece) {
  const at = piece.index ?? calls.length;
  const before = calls[at] ?? { id: '', name: '', args: '' };
  const after = {
    id: piece.id ?? before.id,
    name: before.name + (piece.function?.name ?? ''),
    args: before.args + (piece.function?.arguments ?? ''),
  };
  return [...calls.slice(0, at), after, ...calls.slice(at + 1)];
}

/** @param {Answer} answer tokens a second after the first; null where there is nothing to measure */
export function paceOf(answer) {
  const after = answer.total - (answer.first ?? 0);
  return answer.first !== null && answer.count > 1 && after > 0 ? ((answer.count - 1) / after) * 1000 : null;
}
