/** Asks the server how far apart the targets are, token by token. */
import { stream } from '../../core/sse.js';
import { messagesOf, samplingOf } from './setup.js';

/**
 * @typedef {object} Measured the result of POST /v1/compare
 * @property {{target: string, model: string}[]} targets
 * @property {any[]} cases
 * @property {any[]} summary
 * @property {{level: string, sentence: string, thresholds: any[]}} verdict
 */

/**
 * The request that measures a contest: what the first target answered is read by all.
 * @param {import('./contest.js').State} state
 */
export function measureBody({ setup, rounds }) {
  const answers = rounds.map((round) => round.answers[0]?.text ?? '');
  const given = answers.every((text) => text !== '');
  return {
    targets: setup.targets,
    conversations: setup.prompts.map((prompt) => messagesOf(setup, prompt)),
    ...samplingOf(setup),
    ...(given ? { reference: answers, max_tokens: 0 } : { reference: 0 }),
  };
}

/**
 * @param {import('./contest.js').State} state
 * @param {AbortSignal} signal
 * @param {(share: number) => void} tell how much of it is done, of 1
 * @returns {Promise<Measured>}
 */
export async function measure(state, signal, tell) {
  for await (const told of stream('v1/compare', measureBody(state), signal)) {
    if (told.object !== 'comparison.progress') return told;
    const done = told.positions ? told.scored_positions / told.positions : 0;
    tell((told.case + done) / told.cases);
  }
  throw new Error('The server ended the comparison without a result.');
}

/** @param {number} value a divergence in nats */
export function nats(value) {
  if (value === 0) return '0';
  return value < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

/** @type {[string, string, (value: number) => string][]} what is told of each target: heading, field, how it is written */
export const METRICS = [
  ['mean KL', 'mean_kl', nats],
  ['max KL', 'max_kl', nats],
  ['mean JS', 'mean_js', nats],
  ['same top token', 'top1_agreement', (value) => (value === 1 ? '100%' : `${Math.min(99.9, value * 100).toFixed(1)}%`)],
  ['largest logit difference', 'largest_logit_difference', nats],
  ['perplexity', 'perplexity', (value) => String(Number(value.toPrecision(4)))],
];

/** @type {Record<string, string>} the class of each level of a verdict */
export const LEVELS = { 'equal up to rounding': 'good', 'small differences': 'warn', different: 'bad' };

/** @param {number} kl how strongly a token is coloured, 0 to 1: from a millionth of a nat on, fully at ten */
export function heat(kl) {
  return kl <= 1e-6 ? 0 : Math.min(1, (Math.log10(kl) + 6) / 7) ** 1.5;
}
