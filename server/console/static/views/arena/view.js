/** The arena: the same prompts to several models, side by side, by eye, by vote and by measure. */
import { access } from '../../core/access.js';
import { isAbort } from '../../core/http.js';
import { html, useEffect, useRef, useState } from '../../core/preact.js';
import { noteState } from '../../core/router.js';
import { Store, useStore } from '../../core/store.js';
import { useCatalog } from '../../models/catalog.js';
import { Button } from '../../ui/button.js';
import { ModelChip } from '../../ui/chip.js';
import { CopyButton, download } from '../../ui/clipboard.js';
import { Checkbox } from '../../ui/field.js';
import { ShowAsCurl } from '../../ui/request.js';
import { Empty, Failure, Loading } from '../../ui/states.js';
import { toastFault } from '../../ui/toast.js';
import { ViewHead } from '../../ui/view_head.js';
import { Contest, standings } from './contest.js';
import { Fields } from './fields.js';
import { MeasuredView } from './measured.js';
import { measure, measureBody } from './measuring.js';
import { reportOf } from './report.js';
import { RoundView } from './round.js';
import { readSetup, writeSetup } from './setup.js';

/** @type {import('./contest.js').State} */
const NOTHING = { setup: readSetup(new URLSearchParams()), rounds: [], running: false };
const nothing = new Store(NOTHING);

/**
 * What was set up and run last, for who comes back from another view.
 * @typedef {object} Kept
 * @property {import('./setup.js').Setup} setup
 * @property {Contest | null} contest
 * @property {import('./measuring.js').Measured | null} measured
 */
const kept = new Store(/** @type {Kept} */ ({ setup: NOTHING.setup, contest: null, measured: null }));

/** @param {import('./setup.js').Setup} setup so that the URL says it */
function note(setup) {
  const written = writeSetup(setup);
  if (written) noteState(written);
}

/** @param {{params: URLSearchParams}} props */
export default function Arena({ params }) {
  const catalog = useCatalog();
  const { setup, contest, measured } = useStore(kept);
  const [marks, setMarks] = useState(true);
  const [progress, setProgress] = useState(/** @type {number | null} */ (null));
  const stopper = useRef(new AbortController());
  const state = useStore(contest?.state ?? nothing);

  const change = (/** @type {Partial<import('./setup.js').Setup>} */ some) => {
    kept.patch({ setup: { ...kept.value.setup, ...some } });
    note(kept.value.setup);
  };
  useEffect(() => {
    if ([...params].length) kept.patch({ setup: readSetup(params) });
    else note(setup);
  }, [params]);
  useEffect(() => () => stopper.current.abort(), []);
  useEffect(() => {
    if (catalog.known && !kept.value.setup.targets.length) change({ targets: catalog.models.slice(0, 2).map((model) => model.id) });
  }, [catalog.known]);
  const ready = setup.targets.length > 0 && setup.prompts.length > 0;
  const run = () => {
    if (!ready) return;
    contest?.stop();
    stopper.current.abort();
    stopper.current = new AbortController();
    setProgress(null);
    const next = new Contest(setup);
    kept.patch({ contest: next, measured: null });
    void next.run();
  };
  const ruler = async () => {
    setProgress(0);
    try {
      kept.patch({ measured: await measure(state, stopper.current.signal, setProgress) });
    } catch (error) {
      if (!isAbort(error)) toastFault(error);
    } finally {
      setProgress(null);
    }
  };
  const save = () => {
    const about = { server: `${access.value.server.model ?? ''} at ${location.host}`, when: new Date().toLocaleString() };
    download('comparison.html', reportOf(state, measured, about), 'text/html');
  };
  if (catalog.error && !catalog.known) return html`<${Failure} error=${catalog.error} onRetry=${catalog.reload} />`;
  if (!catalog.known) return html`<${Loading} />`;
  const complete = state.rounds.length > 0 && !state.running;
  const told = state.rounds.every((round) => round.open);
  return html`
    <${ViewHead} title="Arena" actions=${html`
      ${state.running
        ? html`<${Button} icon="stop" onClick=${() => contest?.stop()}>Stop<//>`
        : html`<${Button} kind="primary" icon="play" disabled=${!ready} onClick=${run}>${contest ? 'Run again' : 'Run'}<//>`}
      <${Button} icon="operations" busy=${progress !== null} disabled=${!complete || !told || state.setup.targets.length < 2} onClick=${ruler}
        title="How far their probabilities are apart, token by token">${progress === null ? 'Measure' : `Measuring ${Math.round(progress * 100)} %`}<//>
      <${Button} icon="download" disabled=${!complete || !told} onClick=${save}>Report<//>
      <${CopyButton} text=${() => location.href} label="Copy a link to this" small=${false} />`}>
      The same prompts to several models: by eye, by vote, by measure.
    <//>
    <${Fields} setup=${setup} catalog=${catalog} onChange=${change} onRun=${run} />
    ${!contest && html`<${Empty} icon="arena" title="Nothing asked yet">Choose what is compared, write a prompt or bring a file of them, and run it. Votes count in the server’s statistics.<//>`}
    ${contest && html`<${Standings} state=${state} base=${catalog.base} />
      ${state.setup.targets.length > 1 && told && html`<${Checkbox} label="Mark words that the baseline does not have" checked=${marks} onChange=${setMarks} />`}
      ${measured && html`<${MeasuredView} result=${measured} prompts=${state.setup.prompts} base=${catalog.base} />`}
      ${state.rounds.map((round, at) => html`<${RoundView} key=${at} contest=${contest} round=${round} at=${at} base=${catalog.base} marks=${marks && round.open} />`)}
      ${complete && told && state.setup.targets.length > 1 && html`<${ShowAsCurl} request=${{ path: 'v1/compare', body: measureBody(state) }} label="Show the measurement as curl" />`}`}`;
}

/** @param {{state: import('./contest.js').State, base: string}} props */
function Standings({ state, base }) {
  const ranks = standings(state);
  if (!ranks.length) return null;
  return html`
    <ol class="standings" aria-label="Mean scores">
      ${ranks.map(({ target, mean, count }) => html`
        <li key=${target}>
          <${ModelChip} name=${state.setup.targets[target] ?? ''} base=${state.setup.targets[target] === base} />
          <span class="meter"><span style=${{ width: `${mean * 100}%` }}></span></span>
          <span class="number-text">${mean.toFixed(2)}</span><small class="hint">${count} ${count === 1 ? 'vote' : 'votes'}</small>
        </li>`)}
    </ol>`;
}
