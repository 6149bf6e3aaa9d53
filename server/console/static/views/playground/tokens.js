/** An answer token by token: how sure the model was of each, and what else it might have said. */
import { html, useLayoutEffect, useMemo, useRef, useState } from '../../core/preact.js';
import { percent, visible } from '../../ui/format.js';

/** @typedef {import('../../models/answer.js').Token} Token */

const RUN = 64; // tokens that are drawn anew together

/** Tokens that end an answer are no text that it could go on with. */
const ENDS = /^(?:<\|[^|]*\|>|<\/s>|<eos>|<end_of_turn>)$/;

/** @param {number} logprob how sure, in five steps */
function step(logprob) {
  const p = Math.exp(logprob);
  return p >= 0.9 ? 4 : p >= 0.6 ? 3 : p >= 0.3 ? 2 : p >= 0.1 ? 1 : 0;
}

/** @param {string} text what has to be marked so that it can be pointed at */
function kindOf(text) {
  if (ENDS.test(text)) return 'end';
  return text === '' ? 'empty' : text.includes('\n') ? 'breaks' : '';
}

/**
 * @param {{tokens: Token[], onBranch: ((at: number, chosen: {text: string, logprob: number}) => void) | null}} props
 *   onBranch is null while the answer still comes
 */
export function Tokens({ tokens, onBranch }) {
  const [at, setAt] = useState(-1);
  const [pinned, setPinned] = useState(false);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const runs = [];
  for (let start = 0; start < tokens.length; start += RUN) runs.push(start);
  const indexOf = (/** @type {Event} */ event) => {
    const token = /** @type {HTMLElement} */ (event.target).closest?.('[data-at]');
    return token instanceof HTMLElement ? Number(token.dataset.at) : -1;
  };
  const leave = () => { if (!pinned) setAt(-1); };
  const hover = (/** @type {Event} */ event) => { const found = indexOf(event); if (!pinned && found >= 0) setAt(found); };
  const press = (/** @type {KeyboardEvent} */ event) => {
    const target = /** @type {HTMLElement} */ (event.target);
    if (target.closest('.alternatives')) {
      if (event.key === 'Escape') { setPinned(false); focus(at); }
      const choices = [...target.closest('.alternatives')?.querySelectorAll('button:enabled') ?? []];
      const step = event.key === 'ArrowDown' ? 1 : event.key === 'ArrowUp' ? -1 : 0;
      const next = choices[choices.indexOf(target) + step];
      if (step && next instanceof HTMLElement) { event.preventDefault(); next.focus(); }
      return;
    }
    const now = Math.max(0, at);
    /** @type {Record<string, number>} */
    const places = { ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: tokens.length - 1 };
    const next = places[event.key];
    if (next !== undefined) {
      event.preventDefault();
      focus(Math.min(tokens.length - 1, Math.max(0, next)));
    } else if (event.key === 'Enter' || event.key === ' ') {
      event.preventDefault();
      setPinned(true);
    } else if (event.key === 'Escape') {
      setPinned(false);
      setAt(-1);
    }
  };
  const focus = (/** @type {number} */ index) => {
    setAt(index);
    /** @type {HTMLElement | null | undefined} */ (box.current?.querySelector(`[data-at="${index}"]`))?.focus();
  };
  const outside = (/** @type {FocusEvent} */ event) => {
    if (!box.current?.contains(/** @type {Node | null} */ (event.relatedTarget))) { setPinned(false); setAt(-1); }
  };
  return html`
    <div class="tokens" ref=${box} onMouseOver=${hover} onMouseLeave=${leave} onKeyDown=${press} onFocusOut=${outside}
      onClick=${(/** @type {Event} */ event) => { const found = indexOf(event); if (found >= 0) { setAt(found); setPinned(true); } }}>
      <p class="token-text" role="group" aria-label="Tokens of the answer: arrows move, Enter shows alternatives">
        ${runs.map((start) => html`<${Run} key=${start} tokens=${tokens} start=${start} end=${Math.min(start + RUN, tokens.length)} tab=${Math.max(0, at)} />`)}
      </p>
      ${tokens[at] && html`<${Alternatives} token=${tokens[at]} at=${at} box=${box} pinned=${pinned} onBranch=${onBranch} />`}
    </div>`;
}

/** @param {{tokens: Token[], start: number, end: number, tab: number}} props */
function Run({ tokens, start, end, tab }) {
  const inside = tab >= start && tab < end ? tab : -1;
  return useMemo(() => tokens.slice(start, end).map((token, offset) => {
    const at = start + offset;
    return html`<span key=${at} class=${`token p${step(token.logprob)} ${kindOf(token.text)}`} data-at=${at} role="button" tabIndex=${at === inside ? 0 : -1}
      aria-label=${`${visible(token.text)}, ${percent(Math.exp(token.logprob))}`}>${token.text}</span>`;
  }), [start, end, inside, tokens[start]]);
}

/**
 * What stood to choose from, beside its token.
 * @param {{token: Token, at: number, box: {current: HTMLElement | null}, pinned: boolean, onBranch: ((at: number, chosen: {text: string, logprob: number}) => void) | null}} props
 */
function Alternatives({ token, at, box, pinned, onBranch }) {
  const card = useRef(/** @type {HTMLElement | null} */ (null));
  useLayoutEffect(() => {
    const around = box.current;
    const mark = around?.querySelector(`[data-at="${at}"]`);
    if (!around || !mark || !card.current) return;
    const place = mark.getClientRects()[0] ?? mark.getBoundingClientRect();
    const frame = around.getBoundingClientRect();
    const left = Math.min(place.left - frame.left, Math.max(0, frame.width - card.current.offsetWidth));
    card.current.style.left = `${Math.max(0, left)}px`;
    card.current.style.top = `${place.bottom - frame.top + 4}px`;
  });
  useLayoutEffect(() => {
    if (pinned) /** @type {HTMLElement | null | undefined} */ (card.current?.querySelector('button:enabled') ?? card.current)?.focus();
  }, [pinned, at]);
  const others = token.top.some((each) => each.text === token.text) ? token.top : [token, ...token.top];
  return html`
    <div class="alternatives" ref=${card} role="group" tabIndex="-1" aria-label=${`Instead of ${visible(token.text)}`}>
      ${others.map((each, index) => html`
        <${Alternative} key=${index} each=${each} chosen=${each.text === token.text}
          onChoose=${onBranch && !ENDS.test(each.text) && each.text !== token.text ? () => onBranch(at, each) : null} />`)}
      <p class="hint">${onBranch ? 'Choose another to go on from there.' : 'The answer still comes.'}</p>
    </div>`;
}

/** @param {{each: {text: string, logprob: number}, chosen: boolean, onChoose: (() => void) | null}} props */
function Alternative({ each, chosen, onChoose }) {
  const share = Math.exp(each.logprob);
  return html`
    <button type="button" class=${`alternative ${chosen ? 'chosen' : ''}`} disabled=${!onChoose} onClick=${onChoose}>
      <span class="bar" style=${{ width: `${share * 100}%` }}></span>
      <code>${visible(each.text)}</code><span class="number-text">${share < 0.0005 ? '< 0.1 %' : percent(share)}</span>
    </button>`;
}
