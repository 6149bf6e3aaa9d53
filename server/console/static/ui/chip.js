/** A model's name with its colour, which is the same wherever it is named. */
import { html } from '../core/preact.js';

/** @param {string} name a hue that belongs to it, in degrees */
export function hueOf(name) {
  let hash = 2166136261; // FNV-1a
  for (const letter of name) hash = Math.imul(hash ^ (letter.codePointAt(0) ?? 0), 16777619);
  return (((hash >>> 0) % 24) * 15 + 10) % 360;
}

/** @param {{name: string, base?: boolean}} props the base model has no colour of its own */
export function ModelChip({ name, base = false }) {
  return html`
    <span class=${`model-chip ${base ? 'base' : ''}`} style=${{ '--hue': hueOf(name) }}>
      <span class="dot" aria-hidden="true"></span><span class="name">${name}</span>
    </span>`;
}
