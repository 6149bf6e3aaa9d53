/** How the arms of an alias do: means and rates with their 95% intervals, and how each differs from the first. */
import { html } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { count, duration, percent, short, when } from '../../ui/format.js';
import { Failure, Loading } from '../../ui/states.js';
import { aliasPath } from './api.js';
import { ArmName } from './aliases.js';

/**
 * @typedef {object} Measure
 * @property {string} label
 * @property {(part: any) => any} of an arm, or a difference
 * @property {(value: number) => string} format
 */

/** @param {number} seconds finer than elsewhere: arms differ by parts of milliseconds */
const time = (seconds) => (seconds < 0.01 ? `${short(seconds * 1000, 2)} ms` : duration(seconds));

/** @param {string} reason */
const ended = (reason) => (/** @type {any} */ part) => part.finish_reasons[reason];

/** @type {Measure[]} */
const MEASURES = [
  { label: 'Score', of: (part) => part.score, format: (value) => short(value, 2) },
  { label: 'First token', of: (part) => part.time_to_first_token_seconds, format: time },
  { label: 'Between tokens', of: (part) => part.inter_token_seconds, format: time },
  { label: 'Whole answer', of: (part) => part.request_seconds, format: time },
  { label: 'Tokens of an answer', of: (part) => part.completion_tokens, format: (value) => short(value) },
  { label: 'Cut off by length', of: ended('length'), format: percent },
  { label: 'Broken off by clients', of: ended('abort'), format: percent },
  { label: 'Errors', of: ended('error'), format: percent },
];

/** @param {{name: string}} props */
export function ArmResults({ name }) {
  const { data, error, reload } = useResource(aliasPath(name), { every: 5000 });
  if (error && !data) return html`<${Failure} error=${error} onRetry=${reload} />`;
  if (!data) return html`<${Loading} lines=${3} />`;
  const counted = data.arms.reduce((/** @type {number} */ sum, /** @type {any} */ arm) => sum + arm.requests, 0);
  return html`
    <div class="stack" role="group" aria-label="How its arms do">
      <ul class="arm-counts">
        ${data.arms.map((/** @type {any} */ arm, /** @type {number} */ at) => html`
          <li key=${arm.target}><${ArmName} target=${arm.target} at=${at} /><span class="hint number-text">${percent(arm.share)} · ${count(arm.requests)} requests · ${count(arm.score.count)} scores · since ${when(arm.since)}</span></li>`)}
      </ul>
      ${counted === 0
        ? html`<p class="hint">Nothing is counted yet: ask for <code>${name}</code>, and send scores to <code>/v1/feedback</code>.</p>`
        : html`
          <div class="measures">${MEASURES.map((measure) => html`<${MeasureRow} key=${measure.label} measure=${measure} data=${data} />`)}</div>
          <p class="hint">Lines are 95% intervals. A difference whose interval leaves out 0 is more than chance, if you look once, at a time fixed before.</p>`}
    </div>`;
}

/** @param {{measure: Measure, data: any}} props */
function MeasureRow({ measure: { label, of, format }, data }) {
  const found = data.arms.map((/** @type {any} */ arm) => ({ arm, told: of(arm) }));
  const value = (/** @type {any} */ told) => told?.mean ?? told?.rate ?? null;
  const ends = found.flatMap((/** @type {any} */ { told }) => [value(told), ...(told?.interval ?? [])]).filter((/** @type {number | null} */ end) => end !== null);
  if (!ends.length) return null;
  const low = Math.min(...ends, 0);
  const span = Math.max(...ends) - low || 1;
  const place = (/** @type {number} */ at) => `${((at - low) / span) * 100}%`;
  return html`
    <section class="measure" aria-label=${label}>
      <h3>${label}</h3>
      ${found.map((/** @type {any} */ { arm, told }, /** @type {number} */ at) => {
        const mean = value(told);
        const [from, to] = told?.interval ?? [mean, mean];
        const apart = data.differences.find((/** @type {any} */ each) => each.target === arm.target);
        return html`
          <div key=${arm.target} class="measure-arm">
            <span class=${`arm arm-${at % 8}`} title=${arm.target}></span>
            <span class="number-text">${mean === null ? 'too few' : format(mean)}${told?.interval && html` <span class="hint">${format(from)} to ${format(to)}</span>`}</span>
            <span class="whisker" aria-hidden="true">${mean !== null && html`
              <span class=${`line-of arm-${at % 8}`} style=${{ left: place(from), width: `${((to - from) / span) * 100}%` }}></span>
              <span class=${`mean arm-${at % 8}`} style=${{ left: place(mean) }}></span>`}</span>
            <${Apart} told=${apart && of(apart)} format=${format} />
          </div>`;
      })}
    </section>`;
}

/** @param {{told: {difference: number, interval: [number, number]} | null | undefined, format: (value: number) => string}} props */
function Apart({ told, format }) {
  if (!told || told.difference === 0) return html`<span></span>`;
  const [low, high] = told.interval;
  const says = (/** @type {number} */ value) => `${value < 0 ? '−' : '+'}${format(Math.abs(value))}`;
  const sure = low > 0 || high < 0;
  return html`<span class=${`tag ${sure ? 'warn' : ''}`} title=${`${says(low)} to ${says(high)}`}>${says(told.difference)}${sure ? '' : ', may be chance'}</span>`;
}
