/** One turn of a conversation: what was said, how it came about, and what can be done with it. */
import { html, useState } from '../../core/preact.js';
import { paceOf } from '../../models/answer.js';
import { Button, IconButton } from '../../ui/button.js';
import { ModelChip } from '../../ui/chip.js';
import { CopyButton } from '../../ui/clipboard.js';
import { TextArea } from '../../ui/field.js';
import { count, duration } from '../../ui/format.js';
import { Markdown } from '../../ui/markdown.js';
import { siblings } from './conversation.js';
import { Calls } from './calls.js';
import { Tokens } from './tokens.js';

/** @typedef {import('./conversation.js').Turn} Turn */

/**
 * @typedef {object} TurnProps
 * @property {import('./chat.js').Chat} chat
 * @property {import('./conversation.js').Conversation} conversation
 * @property {Turn} turn
 * @property {boolean} running whether its answer is coming
 * @property {boolean} last whether nothing follows it
 * @property {boolean} asTokens
 * @property {string} base the base model's name
 */

const WHO = { user: 'You', assistant: 'Assistant', tool: 'Result of a tool' };
const ENDS = { length: 'cut at the longest length', stopped: 'stopped', content_filter: 'filtered', tool_calls: 'calls tools' };

/** @param {TurnProps} props */
export function TurnView({ chat, conversation, turn, running, last, asTokens, base }) {
  const [editing, setEditing] = useState(false);
  const others = siblings(conversation, turn);
  const save = (/** @type {string} */ text) => { setEditing(false); void chat.edit(turn, text); };
  return html`
    <article class=${`turn ${turn.role}`} aria-label=${WHO[turn.role]} aria-busy=${running}>
      <header class="turn-head">
        ${turn.role === 'assistant' ? html`<${ModelChip} name=${turn.asked ?? 'assistant'} base=${turn.asked === base} />` : html`<strong>${WHO[turn.role]}</strong>`}
        ${others.length > 1 && html`<${Versions} chat=${chat} turn=${turn} others=${others} />`}
        <span class="turn-actions">
          ${!running && html`<${IconButton} icon="edit" small label="Edit" onClick=${() => setEditing(true)} />`}
          ${turn.content && html`<${CopyButton} text=${turn.content} label="Copy the text" />`}
          ${turn.role === 'assistant' && !running && html`<${IconButton} icon="retry" small label="Ask again" onClick=${() => chat.again(turn)} />`}
        </span>
      </header>
      ${editing
        ? html`<${Editor} turn=${turn} onSave=${save} onCancel=${() => setEditing(false)} />`
        : html`<${Body} chat=${chat} turn=${turn} running=${running} asTokens=${asTokens} />`}
      ${turn.answer && html`<${Foot} chat=${chat} turn=${turn} running=${running} last=${last} />`}
    </article>`;
}

/** @param {{chat: import('./chat.js').Chat, turn: Turn, others: Turn[]}} props */
function Versions({ chat, turn, others }) {
  const at = others.findIndex((each) => each.id === turn.id);
  const move = (/** @type {number} */ step) => { const next = others[at + step]; if (next) chat.show(next.id); };
  return html`
    <span class="versions" role="group" aria-label="Versions of this turn">
      <${IconButton} icon="left" small label="The version before" disabled=${at === 0} onClick=${() => move(-1)} />
      <span class="number-text">${at + 1} / ${others.length}</span>
      <${IconButton} icon="right" small label="The version after" disabled=${at === others.length - 1} onClick=${() => move(1)} />
    </span>`;
}

/** @param {{turn: Turn, onSave: (text: string) => void, onCancel: () => void}} props */
function Editor({ turn, onSave, onCancel }) {
  const [text, setText] = useState(turn.content);
  const press = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === 'Escape') onCancel();
    if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) onSave(text);
  };
  return html`
    <div class="stack" onKeyDown=${press}>
      <${TextArea} label="Text of the turn" hideLabel value=${text} onInput=${setText} autofocus />
      <div class="line">
        <${Button} kind="primary" onClick=${() => onSave(text)}>${turn.role === 'user' ? 'Ask' : 'Keep as a branch'}<//>
        <${Button} kind="quiet" onClick=${onCancel}>Cancel<//>
      </div>
    </div>`;
}

/** @param {{chat: import('./chat.js').Chat, turn: Turn, running: boolean, asTokens: boolean}} props */
function Body({ chat, turn, running, asTokens }) {
  const { answer, content } = turn;
  if (turn.role !== 'assistant') return html`<div class="said">${content}</div>`;
  const tokens = answer?.tokens ?? [];
  const branchAt = running ? null : (/** @type {number} */ at, /** @type {{text: string, logprob: number}} */ chosen) => void chat.branchAt(turn, at, chosen);
  return html`
    ${answer?.reasoning && html`<details class="reasoning"><summary>Reasoning</summary><div class="said">${answer.reasoning}</div></details>`}
    ${asTokens && tokens.length ? html`<${Tokens} tokens=${tokens} onBranch=${branchAt} />` : content && html`<${Markdown} text=${content} />`}
    ${running && !content && html`<span class="typing" role="status" aria-label="Waiting for the first token"><i></i><i></i><i></i></span>`}
    ${answer && answer.calls.length > 0 && html`<${Calls} chat=${chat} turn=${turn} running=${running} />`}`;
}

/** @param {{chat: import('./chat.js').Chat, turn: Turn, running: boolean, last: boolean}} props */
function Foot({ chat, turn, running, last }) {
  const { answer } = turn;
  if (!answer) return null;
  const pace = paceOf(answer);
  const cached = answer.usage?.prompt_tokens_details?.cached_tokens ?? 0;
  const facts = [
    answer.count > 0 && `${count(answer.count)} tokens`,
    answer.first !== null && `first after ${duration(answer.first / 1000)}`,
    pace !== null && `${pace.toFixed(pace < 10 ? 1 : 0)} tokens/s`,
    answer.usage && `${count(answer.usage.prompt_tokens)} in the prompt${cached ? `, ${count(cached)} cached` : ''}`,
    /** @type {Record<string, string>} */ (ENDS)[answer.finish],
  ].filter(Boolean);
  const broken = answer.finish === 'error';
  return html`
    <footer class="turn-foot">
      ${broken && html`<p class="fault" role="alert">${answer.fault}</p>`}
      <span class="hint">${facts.join(' · ')}</span>
      ${!running && last && broken && html`<${Button} icon="retry" onClick=${() => chat.again(turn)}>Ask again<//>`}
      ${!running && last && turn.content && ['length', 'stopped', 'error'].includes(answer.finish)
        && html`<${Button} icon="right" onClick=${() => chat.goOn(turn)}>Go on<//>`}
    </footer>`;
}
