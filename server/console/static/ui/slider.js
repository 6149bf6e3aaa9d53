/** A number on a scale, to be dragged or typed. */
import { html, useEffect, useId, useState } from '../core/preact.js';

/**
 * @typedef {object} SliderProps
 * @property {string} label
 * @property {number} value
 * @property {number} min
 * @property {number} max
 * @property {number} step
 * @property {(value: number) => void} onInput called while it moves
 * @property {(value: number) => void} [onCommit] called once it is released
 * @property {string} [hint]
 * @property {boolean} [centred] the bar goes out from 0
 * @property {boolean} [hideLabel]
 */

/** @param {SliderProps} props */
export function Slider({ label, value, min, max, step, onInput, onCommit, hint, centred = false, hideLabel = false }) {
  const id = useId();
  const [typed, setTyped] = useState(/** @type {string | null} */ (null));
  useEffect(() => setTyped(null), [value]);
  const share = (/** @type {number} */ at) => `${((at - min) / (max - min)) * 100}%`;
  const from = centred ? Math.min(0, value) : min;
  const to = centred ? Math.max(0, value) : value;
  const take = (/** @type {string} */ text) => {
    const number = Number(text);
    setTyped(null);
    if (text.trim() === '' || !Number.isFinite(number)) return;
    const kept = Math.min(max, Math.max(min, number));
    onInput(kept);
    onCommit?.(kept);
  };
  return html`
    <div class="slider">
      <div class="slider-head">
        <label for=${id} class=${hideLabel ? 'unseen' : 'label'} title=${hint}>${label}</label>
        <input class="number" type="text" inputmode="decimal" aria-label=${`${label}, as a number`} value=${typed ?? String(value)}
          onInput=${(/** @type {any} */ event) => setTyped(event.currentTarget.value)}
          onBlur=${() => typed !== null && take(typed)}
          onKeyDown=${(/** @type {KeyboardEvent} */ event) => event.key === 'Enter' && typed !== null && take(typed)} />
      </div>
      <input type="range" id=${id} min=${min} max=${max} step=${step} value=${value}
        style=${{ '--from': share(from), '--to': share(to) }}
        onInput=${(/** @type {any} */ event) => onInput(Number(event.currentTarget.value))}
        onChange=${(/** @type {any} */ event) => onCommit?.(Number(event.currentTarget.value))} />
    </div>`;
}
