/** A contest: every target answers every prompt, a few at a time; who judges says which answers are good. */
import { askJson } from '../../core/http.js';
import { Store } from '../../core/store.js';
import { readAnswer } from '../../models/answer.js';
import { messagesOf, samplingOf } from './setup.js';

/** @typedef {import('../../models/answer.js').Answer} Answer */
/** @typedef {import('./setup.js').Setup} Setup */

// A browser opens six connections to a server: some are left for everything else that the page asks.
const AT_ONCE = 4;

/**
 * @typedef {object} Round one prompt
 * @property {import('./setup.js').Prompt} prompt
 * @property {number[]} order in which the targets stand; by chance where they are not named
 * @property {(Answer | null)[]} answers by target
 * @property {(number | null)[]} scores by target, 0 to 1
 * @property {boolean} open whether it is told who answered what
 */

/**
 * @typedef {object} State
 * @property {Setup} setup as it was when it began
 * @property {Round[]} rounds
 * @property {boolean} running
 */

export class Contest {
  /** @param {Setup} setup */
  constructor(setup) {
    const rounds = setup.prompts.map((prompt) => ({
      prompt,
      order: setup.blind ? shuffled(setup.targets.length) : setup.targets.map((_, at) => at),
      answers: setup.targets.map(() => null),
      scores: setup.targets.map(() => null),
      open: !setup.blind,
    }));
    this.state = new Store(/** @type {State} */ ({ setup, rounds, running: false }));
    this.stopper = new AbortController();
  }

  /** Let all answer. */
  async run() {
    const { setup, rounds } = this.state.value;
    const waiting = rounds.flatMap((_, round) => setup.targets.map((_target, target) => ({ round, target })));
    this.state.patch({ running: true });
    const work = async () => {
      for (let next = waiting.shift(); next && !this.stopper.signal.aborted; next = waiting.shift()) await this.answer(next.round, next.target);
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
    this.state.patch({ running: false });
  }

  stop() {
    this.stopper.abort();
  }

  /** @param {number} round @param {number} target */
  async answer(round, target) {
    const { setup, rounds } = this.state.value;
    const prompt = rounds[round]?.prompt;
    if (!prompt) return;
    const body = { model: setup.targets[target], messages: messagesOf(setup, prompt), ...samplingOf(setup) };
    await readAnswer(body, this.stopper.signal, (answer) => {
      this.change(round, (now) => ({ answers: now.answers.map((each, at) => (at === target ? answer : each)) }));
    });
  }

  /** @param {number} at @param {(round: Round) => Partial<Round>} change */
  change(at, change) {
    this.state.patch({ rounds: this.state.value.rounds.map((round, index) => (index === at ? { ...round, ...change(round) } : round)) });
  }

  /**
   * Score the answers to a prompt, for the server's statistics and then here; now it is told who they are.
   * @param {number} at
   * @param {(number | null)[]} scores by target; null leaves one without
   * @returns {Promise<void>}
   */
  async vote(at, scores) {
    const round = this.state.value.rounds[at];
    if (!round) return;
    await Promise.all(scores.map((score, target) => {
      const id = round.answers[target]?.id;
      return score === null || !id ? null : askJson('v1/feedback', { body: { response_id: id, score } });
    }));
    this.change(at, (now) => ({ open: true, scores: now.scores.map((before, target) => scores[target] ?? before) }));
  }
}

/**
 * How the targets did in all rounds.
 * @param {State} state
 * @returns {{target: number, mean: number, count: number}[]} those that were scored, the best first
 */
export function standings({ setup, rounds }) {
  return setup.targets
    .map((_, target) => {
      const scores = rounds.map((round) => round.scores[target]).filter((score) => typeof score === 'number');
      return { target, count: scores.length, mean: scores.reduce((sum, score) => sum + score, 0) / scores.length };
    })
    .filter(({ count }) => count > 0)
    .sort((a, b) => b.mean - a.mean);
}

/** @param {number} count 0 to count - 1 in an order that nobody knows @returns {number[]} */
function shuffled(count) {
  const order = Array.from({ length: count }, (_, at) => at);
  for (let at = count - 1; at > 0; at -= 1) {
    const other = Math.floor(Math.random() * (at + 1));
    [order[at], order[other]] = [/** @type {number} */ (order[other]), /** @type {number} */ (order[at])];
  }
  return order;
}
