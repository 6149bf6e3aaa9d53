/** A plot of divergences by token as SVG, for reports, in which no script runs. */
import { hueOf } from '../../ui/chip.js';
import { escaped } from '../../ui/escaped.js';

const WIDTH = 720;
const HEIGHT = 220;
const LEFT = 48;
const BOTTOM = 26;
const LOWEST = -8; // power of ten at the bottom; what is smaller, and 0, lies on it

/** @param {{label: string, values: number[]}[]} lines KL in nats, by token */
export function plot(lines) {
  const power = (/** @type {number} */ value) => (value > 0 ? Math.max(LOWEST, Math.log10(value)) : LOWEST);
  const highest = Math.max(1, ...lines.flatMap(({ values }) => values.map((value) => Math.ceil(power(value)))));
  const count = Math.max(1, ...lines.map(({ values }) => values.length));
  const x = (/** @type {number} */ at) => LEFT + ((WIDTH - LEFT - 10) * (count === 1 ? 0.5 : at / (count - 1)));
  const y = (/** @type {number} */ at) => 8 + ((HEIGHT - BOTTOM - 8) * (highest - at)) / (highest - LOWEST);
  const grid = [];
  for (let at = LOWEST; at <= highest; at += 2) {
    const label = at === LOWEST ? '0' : at === 0 ? '1' : `1e${at}`;
    grid.push(`<line class="grid" x1="${LEFT}" x2="${WIDTH - 10}" y1="${y(at).toFixed(1)}" y2="${y(at).toFixed(1)}"/><text x="${LEFT - 8}" y="${(y(at) + 4).toFixed(1)}" text-anchor="end">${label}</text>`);
  }
  const drawn = lines.map(({ label, values }) => {
    const points = values.map((value, at) => `${x(at).toFixed(1)},${y(power(value)).toFixed(1)}`).join(' ');
    return `<polyline points="${points}" stroke="oklch(0.62 0.15 ${hueOf(label)})"/>`;
  });
  const legend = lines.map(({ label }) => `<span><i style="background:oklch(0.62 0.15 ${hueOf(label)})"></i>${escaped(label)}</span>`).join('');
  return `<p class="soft legend">${legend}</p><svg viewBox="0 0 ${WIDTH} ${HEIGHT}" role="img" aria-label="KL divergence by token">${grid.join('')}${drawn.join('')}
<text x="${WIDTH - 10}" y="${HEIGHT - 4}" text-anchor="end">token</text><text x="${LEFT}" y="${HEIGHT - 4}">KL, nats</text></svg>`;
}
