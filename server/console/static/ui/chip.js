/** A model's name with its colour, which is the same wherever it is named. */
import { html } from '../core/preact.js';
import { parseMix } from '../models/mix.js';

/** @param {string} name a hue that belongs to it, in degrees */
export function hueOf(name) {
  let hash = 2166136261; // FNV-1a
  for (const letter of name) hash = Math.imul(hash ^ (letter.codePointAt(0) ?? 0), 16777619);
  return (((hash >>> 0) % 24) * 15 + 10) % 360;
}

/** A mix has the colours of its members; the base model has none. @param {{name: string, base?: boolean}} props */
export function ModelChip({ name, base = false }) {
  const members = parseMix(name)?.map((term) => term.name) ?? [name];
  return html`
    <span class=${`model-chip ${base ? 'base' : ''}`}>
      <span class="dots" aria-hidden="true">${members.map((member, at) => html`<span key=${at} class="dot" style=${{ '--hue': hueOf(member) }}></span>`)}</span>
      <span class="name">${name}</span>
    </span>`;
}
