/** Buttons: with a word, or with an icon that has a label for those who don't see it. */
import { html } from '../core/preact.js';
import { Icon } from './icons.js';

/**
 * @typedef {object} ButtonProps
 * @property {'primary' | 'plain' | 'quiet' | 'danger'} [kind]
 * @property {string} [icon]
 * @property {boolean} [busy] what it began is still going on
 * @property {boolean} [disabled]
 * @property {string} [type]
 * @property {string} [title]
 * @property {(event: any) => void} [onClick]
 * @property {any} [children]
 * @property {string} [class]
 */

/** @param {ButtonProps & Record<string, any>} props */
export function Button({ kind = 'plain', icon, busy = false, disabled = false, children, class: more = '', ...rest }) {
  return html`
    <button type="button" ...${rest} class=${`button ${kind} ${more}`} disabled=${disabled || busy} aria-busy=${busy}>
      ${busy ? html`<span class="spinner" aria-hidden="true"></span>` : icon && html`<${Icon} name=${icon} size=${16} />`}
      ${children && html`<span>${children}</span>`}
    </button>`;
}

/** @param {{icon: string, label: string, small?: boolean} & ButtonProps & Record<string, any>} props */
export function IconButton({ icon, label, small = false, kind = 'quiet', class: more = '', ...rest }) {
  return html`
    <button type="button" ...${rest} class=${`button icon-only ${kind} ${small ? 'small' : ''} ${more}`}
      aria-label=${label} title=${label}>
      <${Icon} name=${icon} size=${small ? 15 : 18} />
    </button>`;
}
