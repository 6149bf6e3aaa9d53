/** What a check found: faults by line, or what there is to learn and what that takes. */
import { ApiError } from '../../core/http.js';
import { html, useEffect, useState } from '../../core/preact.js';
import { bytes, count, duration } from '../../ui/format.js';
import { Icon } from '../../ui/icons.js';
import { faultsOf } from './api.js';

const READ = 32 << 20; // bytes of a file that is read to show its lines
const LETTERS = 240; // of a line

/** @typedef {Record<'training_file' | 'validation_file', {file: File, id: string} | null>} Files */

/** @param {{told: any, error: Error | null, files: Files}} props */
export function CheckResult({ told, error, files }) {
  if (error) return html`<${Faults} error=${error} files=${files} />`;
  /** @type {[string, string][]} */
  const facts = [
    ['Rows', `${count(told.rows)}${told.validation_rows ? `, and ${count(told.validation_rows)} to validate with` : ''}`],
    ['Tokens', count(told.tokens)],
    ['Trained tokens', `${count(told.trained_tokens)} in ${count(told.hyperparameters.n_epochs)} passes`],
    ['Steps', `${count(told.steps)} of ${count(told.hyperparameters.batch_size)} rows`],
    ['Memory', `about ${bytes(told.memory_bytes)}`],
    ['Time', `about ${duration(told.seconds)} of this machine alone`],
  ];
  const warnings = told.warnings ?? [];
  const example = told.example ?? [];
  return html`
    <p class="line tight check-good" role="status"><${Icon} name="check" size=${17} /> Nothing stands against it.</p>
    <dl class="facts">${facts.map(([name, value]) => html`<dt key=${name}>${name}</dt><dd>${value}</dd>`)}</dl>
    ${warnings.length > 0 && html`
      <h3>To know</h3>
      <ul class="notes">${warnings.map((/** @type {any} */ each) => html`<li key=${`${each.line} ${each.message}`}>${each.line && html`<span class="tag">line ${each.line}</span> `}${each.message}</li>`)}</ul>`}
    ${example.length > 0 && html`
      <h3>The first row, as the model reads it</h3>
      <pre class="example" tabIndex="0" aria-label="A row; what is learned is marked">${example.map((/** @type {any} */ part, /** @type {number} */ at) => (part.learned ? html`<mark key=${at}>${part.text}</mark>` : html`<span key=${at}>${part.text}</span>`))}</pre>
      <p class="hint"><mark>Marked</mark> is what is learned; the rest is read.</p>`}`;
}

/** @param {{error: Error, files: Files}} props */
function Faults({ error, files }) {
  const faults = faultsOf(error.message);
  const which = error instanceof ApiError && error.param === 'validation_file' ? 'validation_file' : 'training_file';
  const lines = useLines(files[which]?.file ?? null, faults.filter((fault) => !fault.file).map((fault) => fault.line));
  return html`
    <p class="fault line tight" role="alert"><${Icon} name="warning" size=${17} /> ${faults.length === 1 ? 'This stands against it' : `${count(faults.length)} things stand against it`}</p>
    <ol class="faults">
      ${faults.map((fault, at) => html`
        <li key=${at}>
          <p>${fault.line > 0 && html`<span class="tag bad">line ${fault.line}</span> `}${fault.file === 'validation_file' && html`<span class="tag">validation</span> `}${fault.message}</p>
          ${!fault.file && lines.has(fault.line) && html`<code class="faulty">${lines.get(fault.line)}</code>`}
        </li>`)}
    </ol>`;
}

/** @param {File | null} file @param {number[]} wanted @returns {Map<number, string>} lines of it, by number */
function useLines(file, wanted) {
  const [lines, setLines] = useState(/** @type {Map<number, string>} */ (new Map()));
  const key = wanted.join(' ');
  useEffect(() => {
    if (!file || file.size > READ) return undefined;
    let shown = true;
    file.text().then((text) => {
      const all = text.split('\n');
      const found = wanted.filter((line) => line > 0 && all[line - 1] !== undefined).map((line) => {
        const whole = all[line - 1] ?? '';
        return /** @type {[number, string]} */ ([line, whole.length > LETTERS ? `${whole.slice(0, LETTERS)}…` : whole]);
      });
      if (shown) setLines(new Map(found));
    }, () => {}); // the file is gone: its faults are told all the same
    return () => { shown = false; };
  }, [file, key]);
  return lines;
}
