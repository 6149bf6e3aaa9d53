/** The server now: speed, queue, latencies, what is in a step and in memory. */
import { html, useEffect, useMemo, useState } from '../../core/preact.js';
import { useResource } from '../../core/resource.js';
import { useStore } from '../../core/store.js';
import { Chart } from '../../ui/chart.js';
import { clock, count, duration, percent, short } from '../../ui/format.js';
import { ShowAsCurl } from '../../ui/request.js';
import { Failure, Loading } from '../../ui/states.js';
import { BatchStrip } from './batch.js';
import { batchOf, look, looks, note, recent, seriesOf } from './history.js';
import { Memory, Steps } from './spending.js';
import { total } from './metrics.js';

const EVERY = 2000; // ms
const SHARE_OF_TIME = 10; // looking takes at most this part of it: a thousand adapters have many series

/** @typedef {import('../../ui/chart.js').Series} Series */

const perSecond = (/** @type {number} */ value) => short(value);
/** @type {Record<string, Series[]>} */
const SERIES = {
  speed: [{ label: 'Generated', format: perSecond }, { label: 'Read', hue: 285, format: perSecond }],
  queue: [{ label: 'Running', format: count }, { label: 'Waiting', hue: 45, format: count }],
  first: [{ label: 'Half', format: duration }, { label: '99 in 100', hue: 45, format: duration }],
  gap: [{ label: 'Half', format: duration }, { label: '99 in 100', hue: 45, format: duration }],
};

export function Live() {
  const [every, setEvery] = useState(EVERY);
  const { data, error, reload } = useResource('metrics', { every, read: look });
  const version = useResource('version');
  const all = useStore(looks);
  useEffect(() => {
    if (!data) return;
    note(data);
    if (data.took * SHARE_OF_TIME > every) setEvery(Math.ceil((data.took * SHARE_OF_TIME) / EVERY) * EVERY);
  }, [data]);
  const told = useMemo(() => recent(all), [all]);
  if (error && !data) return html`<${Failure} error=${error} onRetry=${reload} />`;
  const now = all.at(-1)?.samples;
  if (!now) return html`<${Loading} lines=${8} />`;
  return html`
    <div class="stack">
      <${Tiles} told=${told} running=${total(now, 'manylora_requests_running')} waiting=${total(now, 'manylora_requests_waiting')} />
      <${BatchStrip} rows=${batchOf(all)} />
      <${Charts} all=${all} />
      <div class="cards">
        <${Steps} told=${told} />
        <${Memory} samples=${now} version=${version.data} />
      </div>
      <${ShowAsCurl} request=${{ path: 'metrics' }} />
    </div>`;
}

/** @param {{told: ReturnType<typeof recent>, running: number, waiting: number}} props */
function Tiles({ told, running, waiting }) {
  const time = (/** @type {number | null | undefined} */ value) => (value === null || value === undefined ? '–' : duration(value));
  /** @type {[string, string, string][]} */
  const tiles = [
    ['Tokens a second', told ? short(told.tokens) : '–', told ? `${short(told.read)} read` : ''],
    ['Running', count(running), waiting ? `${count(waiting)} waiting` : 'none waiting'],
    ['First token', time(told?.first50), told?.first99 ? `99 in 100: ${time(told.first99)}` : 'nothing answered lately'],
    ['Between tokens', time(told?.gap50), told?.gap99 ? `99 in 100: ${time(told.gap99)}` : 'nothing answered lately'],
    ['Prefix hits', told?.hits === null || !told ? '–' : percent(told.hits), 'of prompt tokens'],
  ];
  return html`
    <dl class="tiles">
      ${tiles.map(([label, value, more]) => html`
        <div key=${label} class="tile"><dt>${label}</dt><dd><strong class="number-text">${value}</strong><span class="hint">${more}</span></dd></div>`)}
    </dl>
    <p class="hint">${told ? `Of the last ${Math.round(told.over)} seconds.` : 'Two looks are needed to tell how fast it is: a moment.'}</p>`;
}

/** @param {{all: import('./history.js').Look[]}} props */
function Charts({ all }) {
  const { x, series } = useMemo(() => seriesOf(all), [all]);
  const pick = (/** @type {string[]} */ ...names) => [x, ...names.map((name) => series[name] ?? [])];
  const speed = useMemo(() => pick('generated', 'prompt'), [series]);
  const queue = useMemo(() => pick('running', 'waiting'), [series]);
  const first = useMemo(() => pick('first50', 'first99'), [series]);
  const gap = useMemo(() => pick('gap50', 'gap99'), [series]);
  /** @type {[string, (number | null)[][], Series[], (value: number) => string][]} */
  const charts = [
    ['Tokens a second', speed, SERIES.speed ?? [], perSecond], ['Requests', queue, SERIES.queue ?? [], count],
    ['First token', first, SERIES.first ?? [], duration], ['Between tokens', gap, SERIES.gap ?? [], duration],
  ];
  return html`
    <div class="charts">
      ${charts.map(([title, data, lines, format]) => html`
        <section key=${title} class="card chart-card" aria-label=${title}>
          <h2>${title}</h2>
          <${Chart} label=${`${title}, in the last ten minutes`} data=${data} series=${lines} height=${170} time formatX=${clock} range=${[0, null]} formatY=${format} sync="operations" />
        </section>`)}
    </div>`;
}
