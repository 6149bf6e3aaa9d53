/** The curves of a job: its loss, and how many tokens it gets right. */
import { html, useMemo } from '../../core/preact.js';
import { Chart } from '../../ui/chart.js';
import { percent, short } from '../../ui/format.js';
import { curves } from './api.js';

/** @typedef {{title: string, names: string[], labels: string[], format: (value: number) => string, range: [number | null, number | null]}} Curve */

/** @type {Curve[]} */
const CURVES = [
  { title: 'Loss', names: ['train_loss', 'valid_loss'], labels: ['Training', 'Validation'], format: short, range: [0, null] },
  { title: 'Tokens right', names: ['train_mean_token_accuracy', 'valid_mean_token_accuracy'], labels: ['Training', 'Validation'], format: percent, range: [0, 1] },
  { title: 'Right', names: ['train_accuracy', 'valid_accuracy'], labels: ['Training', 'Validation'], format: percent, range: [0, 1] },
  { title: 'Reward margin', names: ['train_reward_margin'], labels: ['Training'], format: short, range: [null, null] },
];
const HUES = [undefined, 45];

/** @param {{events: any[]}} props the oldest first */
export function Curves({ events }) {
  const shown = useMemo(() => CURVES.map((curve) => ({ curve, data: curves(events, curve.names) })).filter(({ data }) => data.slice(1).some((column) => column.some((value) => value !== null))), [events]);
  if (!shown.length) return null;
  return html`
    <div class="charts">
      ${shown.map(({ curve, data }) => html`<${One} key=${curve.title} curve=${curve} data=${data} />`)}
    </div>`;
}

/** @param {{curve: Curve, data: (number | null)[][]}} props */
function One({ curve, data }) {
  const there = curve.names.map((_, at) => (data[at + 1] ?? []).some((value) => value !== null));
  const series = curve.labels.map((label, at) => ({ label, hue: HUES[at], format: curve.format, points: at > 0 })).filter((_, at) => there[at]);
  const columns = useMemo(() => [data[0] ?? [], ...data.slice(1).filter((_, at) => there[at])], [data]);
  const last = (data[1] ?? []).findLast((value) => value !== null);
  return html`
    <section class="card chart-card" aria-label=${curve.title}>
      <div class="line"><h2>${curve.title}</h2>${typeof last === 'number' && html`<span class="hint number-text">${curve.format(last)}</span>`}</div>
      <${Chart} label=${`${curve.title} by step`} data=${columns} series=${series} height=${200} range=${curve.range} formatY=${curve.format} xLabel="Step" />
    </section>`;
}
