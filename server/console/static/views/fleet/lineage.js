/** Where an adapter comes from and what leads to it, as a graph of three columns. */
import { linkTo } from '../../core/router.js';
import { namesIn } from './api.js';

/**
 * @typedef {object} Node
 * @property {string} id
 * @property {0 | 1 | 2} column what it is made of, its revisions, what leads to them
 * @property {string} title
 * @property {string} text
 * @property {string | null} href
 * @property {string} kind 'source', 'base', 'job', 'adapter', 'revision', 'current' or 'alias'
 */
/** @typedef {{from: string, to: string, label: string}} Edge */

/**
 * @param {any} adapter with its revisions
 * @param {import('./api.js').Adapter[]} adapters
 * @param {import('./api.js').Alias[]} aliases
 */
export function lineageOf(adapter, adapters, aliases) {
  /** @type {Map<string, Node>} */
  const nodes = new Map();
  /** @type {Edge[]} */
  const edges = [];
  const known = new Map(adapters.map((each) => [each.id, each]));
  const add = (/** @type {Node} */ node) => { if (!nodes.has(node.id)) nodes.set(node.id, node); return node.id; };
  const adapterNode = (/** @type {string} */ name, /** @type {string} */ text, /** @type {0 | 2} */ column) => add({
    id: `${column}:${name}${text && `@${text}`}`, column, title: name, text, kind: 'adapter', href: known.has(name) ? linkTo(`fleet/${name}`) : null,
  });
  adapter.revisions.forEach((/** @type {any} */ each, /** @type {number} */ at) => {
    const id = add({
      id: `r:${each.digest}`, column: 1, title: each.revision, text: `${each.kind}, rank ${each.rank}`, kind: each.current ? 'current' : 'revision', href: null,
    });
    const before = adapter.revisions[at + 1];
    if (before) edges.push({ from: `r:${before.digest}`, to: id, label: '' });
    for (const edge of madeOf(each, add, adapterNode)) edges.push({ from: edge.from, to: id, label: edge.label });
  });
  const current = adapter.digest ? `r:${adapter.digest}` : null;
  for (const alias of aliases) {
    for (const { target, share } of alias.split) {
      const place = placeOf(target, adapter);
      if (!place) continue;
      const to = add({ id: `a:${alias.id}`, column: 2, title: alias.id, text: 'alias', kind: 'alias', href: linkTo('fleet', { tab: 'aliases', alias: alias.id }) });
      edges.push({ from: place, to, label: share < 1 ? `${Math.round(share * 100)} %` : '' });
    }
  }
  for (const each of adapters) {
    if (!current || !each.source?.startsWith('compose:')) continue;
    const [, method = '', ...mix] = each.source.split(':');
    if (namesIn(mix.join(':')).includes(adapter.id)) edges.push({ from: current, to: adapterNode(each.id, '', 2), label: method });
  }
  return { nodes: [...nodes.values()], edges };
}

/**
 * What a revision is made of.
 * @param {any} revision
 * @param {(node: Node) => string} add
 * @param {(name: string, text: string, column: 0) => string} adapterNode
 * @returns {{from: string, label: string}[]}
 */
function madeOf(revision, add, adapterNode) {
  const { lineage } = revision;
  const members = lineage?.members ?? [];
  if (members.length) {
    return members.map((/** @type {any} */ each) => ({ from: adapterNode(each.name, String(each.digest).slice(0, 8), 0), label: `× ${each.weight}` }));
  }
  if (lineage?.job) {
    const job = add({ id: `j:${lineage.job}`, column: 0, title: lineage.job, text: 'trained by this job', kind: 'job', href: linkTo(`jobs/${lineage.job}`) });
    return [{ from: job, label: '' }];
  }
  const base = add({ id: 'base', column: 0, title: revision.base_model ?? lineage?.base ?? 'unknown base', text: 'trained from', kind: 'base', href: null });
  return [{ from: base, label: '' }];
}

/** @param {string} target of an alias @param {any} adapter @returns {string | null} the revision that it means, if it is one of this adapter's */
function placeOf(target, adapter) {
  for (const term of target.split('+')) {
    const [name = '', revision = ''] = (term.split('*')[0] ?? '').split('@');
    if (name !== adapter.id) continue;
    const digits = revision.replace(/\.?merged$/, '');
    const found = adapter.revisions.find((/** @type {any} */ each) => (digits ? each.digest.startsWith(digits) : each.current));
    return found ? `r:${found.digest}` : null;
  }
  return null;
}

export const BOX = { width: 122, height: 44, across: 42, down: 18 };

/**
 * Where each node stands: its column's turn, and as near as may be to what it is joined with.
 * @param {Node[]} nodes
 * @param {Edge[]} edges
 */
export function placed(nodes, edges) {
  /** @type {Map<string, {x: number, y: number}>} */
  const places = new Map();
  const columns = [1, 0, 2].map((column) => nodes.filter((node) => node.column === column));
  for (const column of columns) {
    const wishes = column.map((node) => {
      const joined = edges.flatMap(({ from, to }) => (from === node.id ? [to] : to === node.id ? [from] : [])).map((id) => places.get(id)?.y).filter((y) => y !== undefined);
      return { node, wish: joined.length ? joined.reduce((sum, y) => sum + y, 0) / joined.length : 0 };
    });
    if (column[0]?.column !== 1) wishes.sort((a, b) => a.wish - b.wish);
    let free = 0;
    for (const { node, wish } of wishes) {
      const y = node.column === 1 ? free : Math.max(free, wish);
      places.set(node.id, { x: node.column * (BOX.width + BOX.across), y });
      free = y + BOX.height + BOX.down;
    }
  }
  const height = Math.max(...[...places.values()].map(({ y }) => y), 0) + BOX.height;
  return { places, width: 3 * BOX.width + 2 * BOX.across, height };
}
