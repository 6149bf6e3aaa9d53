/** Tabs: arrows move between them, and only the chosen one is in the order of Tab. */
import { html, useId, useRef } from '../core/preact.js';

/**
 * @typedef {object} Tab
 * @property {string} id
 * @property {string} label
 * @property {any} [badge] a number or so beside the label
 */

/**
 * @param {{tabs: Tab[], chosen: string, onChoose: (id: string) => void, label: string, children: any}} props
 */
export function Tabs({ tabs, chosen, onChoose, label, children }) {
  const base = useId();
  const list = useRef(/** @type {HTMLElement | null} */ (null));
  const move = (/** @type {KeyboardEvent} */ event) => {
    const at = tabs.findIndex((tab) => tab.id === chosen);
    const last = tabs.length - 1;
    /** @type {Record<string, number>} */
    const places = { ArrowLeft: at ? at - 1 : last, ArrowRight: at < last ? at + 1 : 0, Home: 0, End: last };
    const next = tabs[places[event.key] ?? -1];
    if (!next) return;
    event.preventDefault();
    onChoose(next.id);
    /** @type {HTMLElement | null | undefined} */ (list.current?.children[tabs.indexOf(next)])?.focus();
  };
  return html`
    <div class="tabs">
      <div class="tab-list" role="tablist" aria-label=${label} ref=${list} onKeyDown=${move}>
        ${tabs.map((tab) => html`
          <button key=${tab.id} type="button" role="tab" class="tab" id=${`${base}-${tab.id}`}
            aria-selected=${tab.id === chosen} aria-controls=${`${base}-panel`} tabIndex=${tab.id === chosen ? 0 : -1}
            onClick=${() => onChoose(tab.id)}>
            ${tab.label}${tab.badge !== undefined && html`<span class="badge">${tab.badge}</span>`}
          </button>`)}
      </div>
      <div class="tab-panel" role="tabpanel" id=${`${base}-panel`} aria-labelledby=${`${base}-${chosen}`}>${children}</div>
    </div>`;
}
