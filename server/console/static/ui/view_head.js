/** The head of a view: its name, a line about it, and what can be done with all of it. */
import { html, useEffect } from '../core/preact.js';

/** @param {{title: string, children?: any, actions?: any}} props */
export function ViewHead({ title, children, actions }) {
  useEffect(() => { document.title = `${title} · manylora`; }, [title]);
  return html`
    <header class="view-head">
      <div><h1>${title}</h1>${children && html`<p>${children}</p>`}</div>
      ${actions && html`<div class="view-actions">${actions}</div>`}
    </header>`;
}
