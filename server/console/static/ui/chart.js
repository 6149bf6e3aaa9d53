/** Line charts over uPlot, in the colours of the page, as wide as there is room. */
import { html, useEffect, useRef, useState } from '../core/preact.js';
import { addStyle } from '../core/style.js';
import { useModule } from './lazy.js';

/**
 * @typedef {object} Series
 * @property {string} label
 * @property {number} [hue] in degrees; without, in the colour of the accent
 * @property {(value: number) => string} [format]
 * @property {boolean} [points] dots instead of a line
 */

/**
 * @typedef {object} ChartProps
 * @property {string} label what screen readers call it
 * @property {(number | null)[][]} data the places on the x-axis, then the values of each series there
 * @property {Series[]} series
 * @property {number} [height] in px
 * @property {boolean} [time] whether x is unix seconds
 * @property {string} [xLabel]
 * @property {(value: number) => string} [formatX]
 * @property {(value: number) => string} [formatY]
 * @property {[number | null, number | null]} [range] of y; null leaves that end to the data
 * @property {string} [sync] charts of the same name have their cursors together
 */

async function load() {
  const [{ default: UPlot }] = await Promise.all([import('../vendor/uplot.mjs'), addStyle('vendor/uplot.css')]);
  return UPlot;
}

/** @param {string} name of a custom property, as it is now */
function token(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

/** @param {ChartProps} props */
export function Chart({ label, data, series, height = 200, ...how }) {
  const UPlot = useModule('uplot', load);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const plot = useRef(/** @type {any} */ (null));
  const dark = useDark();
  const shape = JSON.stringify([series, height, how.time, how.xLabel, how.range, how.sync, dark]);
  useEffect(() => {
    const element = box.current;
    if (!UPlot || !element) return undefined;
    plot.current = new UPlot(options(series, height, how, element.clientWidth), data, element);
    const watcher = new ResizeObserver(() => plot.current.setSize({ width: element.clientWidth, height }));
    watcher.observe(element);
    return () => { watcher.disconnect(); plot.current.destroy(); plot.current = null; };
  }, [UPlot, shape]);
  useEffect(() => { plot.current?.setData(data); }, [data]);
  return html`<div class="chart" role="img" aria-label=${label} ref=${box} style=${{ minHeight: `${height}px` }}></div>`;
}

/**
 * @param {Series[]} series
 * @param {number} height
 * @param {Omit<ChartProps, 'label' | 'data' | 'series' | 'height'>} how
 * @param {number} width
 */
function options(series, height, how, width) {
  const ink = token('--muted');
  const font = '11px system-ui, sans-serif';
  const axis = { stroke: ink, font, grid: { stroke: token('--line'), width: 1 }, ticks: { stroke: token('--line'), size: 4 } };
  const format = (/** @type {((value: number) => string) | undefined} */ by) => by && { values: (/** @type {any} */ _, /** @type {number[]} */ values) => values.map(by) };
  return {
    width,
    height,
    padding: [8, 18, 0, 0],
    cursor: { y: false, sync: how.sync ? { key: how.sync } : undefined },
    legend: { live: true },
    scales: { x: { time: how.time ?? false }, y: { range: how.range && ((/** @type {any} */ _, /** @type {number} */ low, /** @type {number} */ high) => [how.range?.[0] ?? low, how.range?.[1] ?? (high || 1)]) } },
    axes: [
      { ...axis, label: how.xLabel, labelFont: font, labelSize: 18, size: 30, ...format(how.formatX) },
      { ...axis, size: 52, ...format(how.formatY) },
    ],
    series: [
      { label: how.xLabel ?? (how.time ? 'Time' : ''), value: how.formatX && ((/** @type {any} */ _, /** @type {number | null} */ found) => (found === null ? '–' : how.formatX?.(found))) },
      ...series.map((each) => {
        const colour = each.hue === undefined ? token('--accent') : `oklch(${token('--mark-lightness')} 0.15 ${each.hue})`;
        const value = each.format && ((/** @type {any} */ _, /** @type {number | null} */ found) => (found === null ? '–' : each.format?.(found)));
        return { label: each.label, stroke: colour, width: each.points ? 0 : 1.75, points: { show: Boolean(each.points), size: 6, fill: colour }, value, spanGaps: true };
      }),
    ],
  };
}

/** Whether the page is dark; charts are drawn anew when that changes. */
function useDark() {
  const [dark, setDark] = useState(matchMedia('(prefers-color-scheme: dark)').matches);
  useEffect(() => {
    const query = matchMedia('(prefers-color-scheme: dark)');
    const change = () => setDark(query.matches);
    query.addEventListener('change', change);
    return () => query.removeEventListener('change', change);
  }, []);
  return dark;
}
