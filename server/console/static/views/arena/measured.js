/** How far the targets are apart: the verdict, the numbers, a strip of tokens and a plot for each prompt. */
import { html, useState } from '../../core/preact.js';
import { Chart } from '../../ui/chart.js';
import { ModelChip, hueOf } from '../../ui/chip.js';
import { visible } from '../../ui/format.js';
import { LEVELS, METRICS, heat, nats } from './measuring.js';
import { promptText } from './setup.js';

const LOWEST = -8; // power of ten at the bottom of the plot; what is smaller, and 0, lies on it

/** @param {{result: import('./measuring.js').Measured, prompts: import('./setup.js').Prompt[], base: string}} props */
export function MeasuredView({ result, prompts, base }) {
  const { verdict } = result;
  return html`
    <section class="card measured" aria-label="Measured differences">
      <div class="line"><h2>Measured</h2><span class=${`tag ${LEVELS[verdict.level] ?? ''}`}>${verdict.level}</span></div>
      <p>${verdict.sentence}</p>
      <div class="scrolls" tabIndex="0" role="region" aria-label="Numbers">
        <table class="numbers">
          <thead><tr><th scope="col">target</th>${METRICS.map(([heading]) => html`<th scope="col">${heading}</th>`)}<th scope="col">verdict</th></tr></thead>
          <tbody>
            ${result.summary.map((entry) => html`
              <tr key=${entry.target}>
                <th scope="row"><${ModelChip} name=${nameOf(result, entry.target)} base=${nameOf(result, entry.target) === base} /></th>
                ${METRICS.map(([, field, write]) => html`<td>${entry.target === 0 && field !== 'perplexity' ? '–' : write(entry[field])}</td>`)}
                <td class="level">${entry.target === 0 ? 'baseline' : html`<span class=${`tag ${LEVELS[entry.level] ?? ''}`}>${entry.level}</span>`}</td>
              </tr>`)}
          </tbody>
        </table>
      </div>
      ${result.cases.map((each, at) => html`<${Case} key=${at} result=${result} found=${each} prompt=${prompts[at]} />`)}
      <p class="hint">All targets read what the first one answered, token by token; the colour says how far the probabilities of each are from
        the baseline’s there (KL, in nats). Underlined: it would have taken another token.</p>
    </section>`;
}

/** @param {import('./measuring.js').Measured} result @param {number} target */
function nameOf(result, target) {
  return result.targets[target]?.target ?? '';
}

/** @param {{result: import('./measuring.js').Measured, found: any, prompt: import('./setup.js').Prompt | undefined}} props */
function Case({ result, found, prompt }) {
  /** @type {any[]} */
  const pairs = found.pairs;
  const places = found.reference.tokens.map((/** @type {any} */ _, /** @type {number} */ at) => at);
  const lines = pairs.map((pair) => pair.kl.map((/** @type {number} */ kl) => (kl > 0 ? Math.max(LOWEST, Math.log10(kl)) : LOWEST)));
  const series = pairs.map((pair) => ({
    label: nameOf(result, pair.target),
    hue: hueOf(nameOf(result, pair.target)),
    format: (/** @type {number} */ power) => (power <= LOWEST ? '0' : nats(10 ** power)),
  }));
  return html`
    <div class="case">
      ${prompt && html`<p class="asked">${promptText(prompt)}</p>`}
      ${pairs.map((pair) => html`<${Strip} key=${pair.target} result=${result} found=${found} pair=${pair} />`)}
      <${Chart} label="KL divergence by token" data=${[places, ...lines]} series=${series} height=${190} range=${[LOWEST, null]}
        xLabel="token" formatY=${(/** @type {number} */ power) => (power <= LOWEST ? '0' : power === 0 ? '1' : `1e${power}`)} />
    </div>`;
}

/** @param {{result: import('./measuring.js').Measured, found: any, pair: any}} props */
function Strip({ result, found, pair }) {
  const [at, setAt] = useState(-1);
  const score = (/** @type {number} */ target) => found.scores.find((/** @type {any} */ each) => each.target === target);
  const look = (/** @type {any} */ event) => {
    const token = event.target.closest('[data-at]');
    if (token) setAt(Number(token.dataset.at));
  };
  const move = (/** @type {KeyboardEvent} */ event) => {
    const step = event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0;
    if (!step) return;
    event.preventDefault();
    setAt(Math.max(0, Math.min(pair.kl.length - 1, at + step)));
  };
  const name = nameOf(result, pair.target);
  return html`
    <div class="strip" onMouseOver=${look}>
      <div class="line"><${ModelChip} name=${name} />${pair.same_model && html`<span class="tag">the same model</span>`}</div>
      <p class="strip-text" tabIndex="0" role="group" aria-label=${`Divergence of ${name} by token: arrows move`} onKeyDown=${move}>
        ${found.reference.tokens.map((/** @type {any} */ token, /** @type {number} */ index) => html`
          <span key=${index} data-at=${index} class=${`heat ${pair.top1_agrees[index] ? '' : 'other'} ${index === at ? 'now' : ''}`}
            style=${{ '--heat': heat(pair.kl[index]) }}>${token.text}</span>`)}
      </p>
      <p class="hint number-text" role="status">${at < 0 ? firstOther(pair) : tokenFacts(found, pair, score(0), score(pair.target), at)}</p>
    </div>`;
}

/** @param {any} pair */
function firstOther(pair) {
  const first = pair.first_divergent;
  return first ? `First other top token at ${first.position}: “${visible(first.target)}”, not “${visible(first.baseline)}”.` : 'The same top token everywhere.';
}

/** @param {any} found @param {any} pair @param {any} baseline @param {any} own @param {number} at */
function tokenFacts(found, pair, baseline, own, at) {
  return [
    `Token ${at} “${visible(found.reference.tokens[at].text)}”`,
    `KL ${nats(pair.kl[at])}`,
    `probability ${Math.exp(baseline.logprobs[at]).toFixed(3)} → ${Math.exp(own.logprobs[at]).toFixed(3)}`,
    `likeliest “${visible(baseline.top_tokens[at])}” → “${visible(own.top_tokens[at])}”`,
  ].join(' · ');
}
