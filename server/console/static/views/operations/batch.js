/** What a step's batch is made of: rows by adapter, as a strip. */
import { html } from '../../core/preact.js';
import { hueOf } from '../../ui/chip.js';
import { count, short } from '../../ui/format.js';

const MOST = 12; // adapters by themselves; the rest are one part
const REST = '(others)';

/** @param {{name: string, rows: number}[]} rows the most first */
function shownOf(rows) {
  const rest = rows.slice(MOST);
  if (!rest.length) return rows;
  return [...rows.slice(0, MOST), { name: REST, rows: rest.reduce((sum, each) => sum + each.rows, 0) }];
}

/** @param {{rows: {name: string, rows: number}[]}} props mean rows of the latest steps */
export function BatchStrip({ rows }) {
  const all = rows.reduce((sum, each) => sum + each.rows, 0);
  const shown = shownOf(rows);
  const colour = (/** @type {string} */ name) => (name.startsWith('(') ? undefined : { '--hue': hueOf(name) });
  return html`
    <section class="card" aria-label="Batch">
      <div class="line"><h2>Batch</h2><span class="hint number-text">${all ? `${short(all)} rows a step, of ${count(rows.length)} ${rows.length === 1 ? 'model' : 'models'}` : 'no row at the moment'}</span></div>
      <div class="batch-strip" aria-hidden="true">
        ${shown.map(({ name, rows: part }) => html`<span key=${name} class=${`batch-part ${name.startsWith('(') ? 'own' : ''}`} style=${{ ...colour(name), flexGrow: part }} title=${`${name}: ${short(part)}`}></span>`)}
      </div>
      <ul class="batch-names">
        ${shown.map(({ name, rows: part }) => html`
          <li key=${name}><span class=${`dot ${name.startsWith('(') ? 'own' : ''}`} style=${colour(name)} aria-hidden="true"></span><span class="batch-name">${name}</span> <span class="hint number-text">${short(part, 2)}</span></li>`)}
      </ul>
    </section>`;
}
