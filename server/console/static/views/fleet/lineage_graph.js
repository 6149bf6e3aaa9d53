/** The graph of an adapter's lineage, drawn, and told as a list to those who don't see it. */
import { html, useMemo } from '../../core/preact.js';
import { BOX, lineageOf, placed } from './lineage.js';

/** @typedef {import('./lineage.js').Node} Node */

const LETTERS = 15; // that a box is wide

/** @param {string} text */
function fitting(text) {
  return text.length > LETTERS ? `${text.slice(0, LETTERS - 1)}…` : text;
}

/**
 * @param {{adapter: any, adapters: import('./api.js').Adapter[], aliases: import('./api.js').Alias[]}} props
 */
export function LineageGraph({ adapter, adapters, aliases }) {
  const { nodes, edges } = useMemo(() => lineageOf(adapter, adapters, aliases), [adapter, adapters, aliases]);
  const { places, width, height } = useMemo(() => placed(nodes, edges), [nodes, edges]);
  const title = (/** @type {string} */ id) => nodes.find((node) => node.id === id)?.title ?? '';
  if (!nodes.length) return html`<p class="hint">It has no revision yet.</p>`;
  return html`
    <div class="graph" tabIndex="0" role="group" aria-label="Lineage, left to right">
      <svg style=${{ maxWidth: `${width + 4}px` }} viewBox=${`-2 -2 ${width + 4} ${height + 4}`} role="group" aria-label=${`Lineage of ${adapter.id}`}>
        ${edges.map(({ from, to, label }) => html`<${Line} key=${`${from} ${to}`} from=${places.get(from)} to=${places.get(to)} label=${label} />`)}
        ${nodes.map((node) => html`<${Box} key=${node.id} node=${node} place=${places.get(node.id)} />`)}
      </svg>
    </div>
    <ul class="unseen">${edges.map(({ from, to, label }) => html`<li key=${`${from} ${to}`}>${title(from)} leads to ${title(to)} ${label}</li>`)}</ul>`;
}

/** @param {{node: Node, place: {x: number, y: number} | undefined}} props */
function Box({ node, place }) {
  if (!place) return null;
  const box = html`
    <title>${node.title}${node.text && `, ${node.text}`}</title>
    <rect width=${BOX.width} height=${BOX.height} rx="8" />
    <text x="12" y="18" class="node-title">${fitting(node.title)}</text>
    <text x="12" y="34" class="node-text">${fitting(node.text)}</text>`;
  const at = `translate(${place.x} ${place.y})`;
  return node.href
    ? html`<a href=${node.href} class=${`node ${node.kind}`} transform=${at}>${box}</a>`
    : html`<g class=${`node ${node.kind}`} transform=${at}>${box}</g>`;
}

/** @param {{from?: {x: number, y: number}, to?: {x: number, y: number}, label: string}} props */
function Line({ from, to, label }) {
  if (!from || !to) return null;
  if (from.x === to.x) { // revisions, one after the other
    const x = from.x + BOX.width / 2;
    return html`<path class="edge after" d=${`M${x} ${from.y}V${to.y + BOX.height}`} />`;
  }
  const [x1, y1, x2, y2] = [from.x + BOX.width, from.y + BOX.height / 2, to.x, to.y + BOX.height / 2];
  const middle = (x1 + x2) / 2;
  const first = from.x === 0; // a label stands at the end that is not shared
  return html`
    <path class="edge" d=${`M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`} />
    ${label && html`<text class="edge-label" x=${first ? x1 + 4 : x2 - 4} y=${(first ? y1 : y2) - 5} text-anchor=${first ? 'start' : 'end'}>${label}</text>`}`;
}
