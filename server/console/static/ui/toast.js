/** Short notes of what happened, that screen readers read out. */
import { html } from '../core/preact.js';
import { Store, useStore } from '../core/store.js';
import { IconButton } from './button.js';

/** @typedef {{id: number, text: string, kind: 'note' | 'fault'}} Note */

/** @type {Store<Note[]>} */
const notes = new Store(/** @type {Note[]} */ ([]));
const SHOWN_FOR = { note: 4000, fault: 12_000 }; // ms
let count = 0;

/**
 * @param {string} text
 * @param {'note' | 'fault'} [kind]
 */
export function toast(text, kind = 'note') {
  const id = ++count;
  notes.set([...notes.value.slice(-3), { id, text, kind }]);
  setTimeout(() => dismiss(id), SHOWN_FOR[kind]);
}

/** @param {unknown} error told as a fault */
export function toastFault(error) {
  toast(error instanceof Error ? error.message : String(error), 'fault');
}

/** @param {number} id */
function dismiss(id) {
  notes.set(notes.value.filter((note) => note.id !== id));
}

/** Where they appear; stands once, in the frame. */
export function Toasts() {
  return html`
    <div class="toasts" role="status" aria-live="polite">
      ${useStore(notes).map((note) => html`
        <div key=${note.id} class=${`toast ${note.kind}`}>
          <span>${note.text}</span>
          <${IconButton} icon="close" label="Dismiss" small onClick=${() => dismiss(note.id)} />
        </div>`)}
    </div>`;
}
