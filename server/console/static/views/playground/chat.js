/** A conversation that goes on: what can be done with it, and the one answer that may be coming. */
import { Store } from '../../core/store.js';
import { readAnswer } from '../../models/answer.js';
import { toastFault } from '../../ui/toast.js';
import { branch, showing, withChange, withTurn } from './conversation.js';
import { bodyOf } from './request.js';
import { saveConversation } from './storage.js';

/** @typedef {import('./conversation.js').Conversation} Conversation */
/** @typedef {import('./conversation.js').Turn} Turn */
/** @typedef {import('../../models/answer.js').Answer} Answer */

const SAVED_AFTER = 400; // ms without a change

export class Chat {
  /** @param {Conversation} conversation */
  constructor(conversation) {
    this.conversation = new Store(conversation);
    /** The turn whose answer is coming; '' for none. */
    this.running = new Store('');
    /** @type {AbortController | null} */
    this.stopper = null;
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.saving = undefined;
  }

  /** @param {Partial<Conversation>} change */
  change(change) {
    this.conversation.patch(change);
    if (!Object.keys(this.conversation.value.turns).length) return;
    clearTimeout(this.saving); // a slider that moves says so many times a second
    this.saving = setTimeout(() => void this.save(), SAVED_AFTER);
  }

  async save() {
    await saveConversation(this.conversation.value).catch(() => {}); // it stays in the page
  }

  /** @param {string} text the user's next turn, which is answered */
  async send(text) {
    this.stop();
    const [conversation, turn] = withTurn(this.conversation.value, { parent: this.conversation.value.leaf, role: 'user', content: text });
    this.conversation.set(conversation);
    await this.ask(turn.id);
  }

  /**
   * Ask for an answer to a turn.
   * @param {string | null} leaf
   * @param {Answer} [begun] how it begins
   */
  async ask(leaf, begun) {
    this.stop();
    let body;
    try {
      body = bodyOf(this.conversation.value, leaf, begun?.text);
    } catch (error) {
      toastFault(error);
      return;
    }
    const asked = this.conversation.value.model;
    const [conversation, turn] = withTurn(this.conversation.value, { parent: leaf, role: 'assistant', content: begun?.text ?? '', asked });
    this.conversation.set(conversation);
    this.running.set(turn.id);
    void this.save();
    const stopper = new AbortController();
    this.stopper = stopper;
    await readAnswer(body, stopper.signal, (answer) => {
      this.conversation.set(withChange(this.conversation.value, turn.id, { content: answer.text, answer }));
    }, begun);
    await this.save(); // so that what is complete is also kept
    if (this.running.value === turn.id) this.running.set('');
  }

  /** End the answer that is coming. What has come stays. */
  stop() {
    this.stopper?.abort();
    this.stopper = null;
    this.running.set('');
  }

  /** @param {Turn} turn an answer that is asked for once more, beside it */
  async again(turn) {
    await this.ask(turn.parent);
  }

  /** Ask again with another model, where the branch ends with an answer. */
  async askAgain() {
    const last = branch(this.conversation.value).at(-1);
    if (last?.role === 'assistant') await this.again(last);
  }

  /**
   * A turn with other words, beside it; a user's is answered.
   * @param {Turn} turn
   * @param {string} content
   */
  async edit(turn, content) {
    this.stop();
    const [conversation, made] = withTurn(this.conversation.value, { parent: turn.parent, role: turn.role, content, callId: turn.callId, asked: turn.asked });
    this.conversation.set(conversation);
    if (turn.role === 'user') await this.ask(made.id);
    else void this.save();
  }

  /** @param {Turn} turn an answer that did not come to its end: the rest of it, beside it */
  async goOn(turn) {
    if (turn.answer) await this.ask(turn.parent, turn.answer);
  }

  /**
   * Another answer that is the same up to a token, has another one there, and goes on by itself.
   * @param {Turn} turn
   * @param {number} at which of its tokens
   * @param {{text: string, logprob: number}} chosen in its place
   */
  async branchAt(turn, at, chosen) {
    const { answer } = turn;
    const token = answer?.tokens[at];
    if (!answer || !token) return;
    const tokens = [...answer.tokens.slice(0, at), { ...token, ...chosen }];
    await this.ask(turn.parent, { ...answer, text: tokens.map((each) => each.text).join(''), tokens, calls: [], reasoning: '' });
  }

  /**
   * Results of the tools that an answer calls, which is gone on with.
   * @param {Turn} turn
   * @param {string[]} results one for each call
   */
  async giveResults(turn, results) {
    let conversation = this.conversation.value;
    let parent = turn.id;
    (turn.answer?.calls ?? []).forEach((call, index) => {
      const [next, made] = withTurn(conversation, { parent, role: 'tool', callId: call.id, content: results[index] ?? '' });
      conversation = next;
      parent = made.id;
    });
    this.conversation.set(conversation);
    await this.ask(parent);
  }

  /** @param {string} id */
  show(id) {
    this.stop();
    this.conversation.set(showing(this.conversation.value, id));
    void this.save();
  }
}
