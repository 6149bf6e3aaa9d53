/** One prompt and what the targets answered, side by side, with what differs and how good it was. */
import { html, useMemo } from '../../core/preact.js';
import { paceOf } from '../../models/answer.js';
import { Button, IconButton } from '../../ui/button.js';
import { ModelChip } from '../../ui/chip.js';
import { count, duration } from '../../ui/format.js';
import { toast, toastFault } from '../../ui/toast.js';
import { differences } from './differences.js';
import { promptText } from './setup.js';

const LETTERS = 'ABCDEFGH';

/** @typedef {import('./contest.js').Contest} Contest */
/** @typedef {import('./contest.js').Round} Round */

/** @param {{contest: Contest, round: Round, at: number, base: string, marks: boolean}} props */
export function RoundView({ contest, round, at, base, marks }) {
  const { setup } = contest.state.value;
  const complete = round.answers.every((answer) => answer?.finish);
  const baseline = round.answers[0];
  const vote = (/** @type {(number | null)[]} */ scores) => contest.vote(at, scores).then(() => toast('Your votes are counted.'), toastFault);
  const best = (/** @type {number} */ winner) => vote(setup.targets.map((_, target) => Number(target === winner)));
  const all = (/** @type {number} */ score) => vote(setup.targets.map(() => score));
  return html`
    <section class="round" aria-label=${`Prompt ${at + 1}`}>
      <p class="asked">${promptText(round.prompt)}</p>
      <div class="answers" style=${{ '--columns': setup.targets.length }}>
        ${round.order.map((target, place) => html`
          <${Column} key=${target} answer=${round.answers[target] ?? null} name=${setup.targets[target] ?? ''} letter=${LETTERS[place] ?? ''} open=${round.open}
            base=${base} score=${round.scores[target] ?? null} baseline=${marks && target !== 0 && baseline?.finish ? baseline.text : null}
            onScore=${setup.blind || !complete ? null : (/** @type {number} */ score) => vote(setup.targets.map((_, other) => (other === target ? score : null)))}
            onBest=${setup.blind && !round.open && complete ? () => best(target) : null} />`)}
      </div>
      ${setup.blind && !round.open && html`
        <div class="line">
          <${Button} disabled=${!complete} onClick=${() => all(0.5)}>Equally good<//>
          <${Button} disabled=${!complete} onClick=${() => all(0)}>None is good<//>
          <span class="hint">${complete ? 'Choose the best. Who is who is told then.' : 'Wait until all have answered.'}</span>
        </div>`}
    </section>`;
}

/**
 * @param {{answer: import('../../models/answer.js').Answer | null, name: string, letter: string, open: boolean, base: string, score: number | null,
 *   baseline: string | null, onScore: ((score: number) => void) | null, onBest: (() => void) | null}} props
 *   baseline: what its words are compared with; null where they are not
 */
function Column({ answer, name, letter, open, base, score, baseline, onScore, onBest }) {
  const who = open ? name : `Answer ${letter}`;
  return html`
    <article class=${`column ${score === 1 ? 'best' : ''}`} aria-label=${who} aria-busy=${Boolean(answer && !answer.finish)}>
      <header class="column-head">
        ${open ? html`<${ModelChip} name=${name} base=${name === base} />` : html`<strong class="letter">${letter}</strong>`}
        ${onScore && html`
          <span class="thumbs">
            <${IconButton} icon="thumbUp" small label=${`${who} is good`} aria-pressed=${score === 1} onClick=${() => onScore(1)} />
            <${IconButton} icon="thumbDown" small label=${`${who} is bad`} aria-pressed=${score === 0} onClick=${() => onScore(0)} />
          </span>`}
        ${!onScore && score !== null && html`<span class=${`tag ${score === 1 ? 'good' : ''}`}>${score}</span>`}
      </header>
      ${answer?.fault && html`<p class="fault" role="alert">${open ? answer.fault : 'This one failed.'}</p>`}
      ${answer ? html`<${Words} text=${answer.text} baseline=${answer.finish ? baseline : null} />` : html`<p class="hint">Waiting for its turn</p>`}
      ${answer && open && html`<p class="hint number-text">${factsOf(answer)}</p>`}
      ${onBest && html`<${Button} class="pick" onClick=${onBest}>${letter} is best<//>`}
    </article>`;
}

/** @param {{text: string, baseline: string | null}} props */
function Words({ text, baseline }) {
  const pieces = useMemo(() => (baseline === null ? null : differences(baseline, text)), [baseline, text]);
  if (!pieces) return html`<div class="said">${text}</div>`;
  return html`<div class="said">${pieces.map((piece) => (piece.differs ? html`<mark>${piece.text}</mark>` : piece.text))}</div>`;
}

/** @param {import('../../models/answer.js').Answer} answer */
export function factsOf(answer) {
  const pace = paceOf(answer);
  return [
    answer.count > 0 && `${count(answer.count)} tokens${answer.finish === 'length' ? ', cut' : ''}`,
    answer.first !== null && `first after ${duration(answer.first / 1000)}`,
    pace !== null && `${pace.toFixed(0)} tokens/s`,
  ].filter(Boolean).join(' · ');
}
