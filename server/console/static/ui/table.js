/** Tables of any length: only the rows that can be seen are there. */
import { html, useEffect, useLayoutEffect, useRef, useState } from '../core/preact.js';
import { Icon } from './icons.js';

/**
 * @typedef {object} Column
 * @property {string} id
 * @property {string} label
 * @property {(row: any) => any} render what a cell shows
 * @property {(row: any) => string | number} [sort] by what it is sorted; without, it can't be
 * @property {string} [width] of a grid's track, such as '8rem' or 'minmax(10rem, 2fr)'
 * @property {boolean} [end] right-aligned, as numbers are
 * @property {boolean} [extra] left out where there is little room
 */

/**
 * @typedef {object} TableProps
 * @property {string} label what the table is about
 * @property {Column[]} columns
 * @property {any[]} rows
 * @property {(row: any) => string} keyOf
 * @property {(row: any) => void} [onOpen] a row was clicked, or Enter pressed on it
 * @property {string} [opened] the key of the row that is open
 * @property {{by: string, down: boolean}} [sorted] how it is sorted at first
 * @property {number} [rowHeight] in px
 */

const SPARE = 8; // rows that are there above and below what can be seen

/** @param {TableProps} props */
export function Table({ label, columns, rows, keyOf, onOpen, opened, sorted, rowHeight = 44 }) {
  const [order, setOrder] = useState(sorted ?? null);
  const [cursor, setCursor] = useState(0);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const view = useVisible(box, rowHeight);
  const shown = sortRows(rows, columns, order);
  const first = Math.max(0, view.first - SPARE);
  const last = Math.min(shown.length, view.first + view.count + SPARE);
  const wanted = useRef(-1);

  useLayoutEffect(() => {
    if (wanted.current < 0) return;
    const row = box.current?.querySelector(`[data-at="${wanted.current}"]`);
    if (row instanceof HTMLElement) { row.focus({ preventScroll: true }); wanted.current = -1; }
  });

  const move = (/** @type {KeyboardEvent} */ event) => {
    const page = Math.max(1, view.count - 1);
    /** @type {Record<string, number>} */
    const places = {
      ArrowDown: cursor + 1, ArrowUp: cursor - 1, PageDown: cursor + page, PageUp: cursor - page, Home: 0, End: shown.length - 1,
    };
    const target = /** @type {HTMLElement} */ (event.target);
    if (event.key === 'Enter' && target.dataset.at && onOpen) onOpen(shown[cursor]);
    const place = places[event.key];
    if (place === undefined || !target.dataset.at) return;
    event.preventDefault();
    const at = Math.min(shown.length - 1, Math.max(0, place));
    setCursor(at);
    wanted.current = at;
    reveal(box.current, at * rowHeight, rowHeight);
  };
  const widths = columns.map((column) => column.width ?? 'minmax(6rem, 1fr)');
  const narrow = columns.filter((column) => !column.extra).map((column) => column.width ?? 'minmax(5rem, 1fr)');
  const tracks = { '--tracks': widths.join(' '), '--narrow-tracks': narrow.join(' ') };
  const tab = Math.min(cursor, Math.max(0, shown.length - 1));
  return html`
    <div class="table" role="table" aria-label=${label} aria-rowcount=${shown.length + 1} ref=${box} style=${tracks} onKeyDown=${move}>
      <div class="table-head" role="rowgroup"><div class="row" role="row" aria-rowindex="1">
        ${columns.map((column) => html`<${Head} key=${column.id} column=${column} order=${order} onOrder=${setOrder} />`)}
      </div></div>
      <div class="table-rows" role="rowgroup" style=${{ height: `${shown.length * rowHeight}px` }}>
        ${shown.slice(first, last).map((row, offset) => {
          const at = first + offset;
          const key = keyOf(row);
          return html`
            <div key=${key} class=${`row ${onOpen ? 'opens' : ''} ${key === opened ? 'open' : ''}`} role="row" aria-rowindex=${at + 2}
              data-at=${at} tabIndex=${at === tab ? 0 : -1} aria-current=${key === opened ? 'true' : undefined}
              style=${{ transform: `translateY(${at * rowHeight}px)`, height: `${rowHeight}px` }}
              onFocus=${() => setCursor(at)} onClick=${onOpen && (() => { setCursor(at); onOpen(row); })}>
              ${columns.map((column) => html`
                <div key=${column.id} role="cell" class=${`cell ${column.end ? 'end' : ''} ${column.extra ? 'extra' : ''}`}>${column.render(row)}</div>`)}
            </div>`;
        })}
      </div>
    </div>`;
}

/** @param {{column: Column, order: {by: string, down: boolean} | null, onOrder: (order: {by: string, down: boolean}) => void}} props */
function Head({ column, order, onOrder }) {
  const mine = order?.by === column.id ? order : null;
  const direction = mine ? (mine.down ? 'descending' : 'ascending') : 'none';
  const classes = `cell ${column.end ? 'end' : ''} ${column.extra ? 'extra' : ''}`;
  if (!column.sort) return html`<div role="columnheader" class=${classes}>${column.label}</div>`;
  return html`
    <div role="columnheader" class=${classes} aria-sort=${direction}>
      <button type="button" class="sorter" onClick=${() => onOrder({ by: column.id, down: mine ? !mine.down : Boolean(column.end) })}>
        ${column.label}${mine && html`<${Icon} name=${mine.down ? 'down' : 'up'} size=${13} />`}
      </button>
    </div>`;
}

/**
 * @param {any[]} rows
 * @param {Column[]} columns
 * @param {{by: string, down: boolean} | null} order
 */
function sortRows(rows, columns, order) {
  const by = columns.find((column) => column.id === order?.by)?.sort;
  if (!by || !order) return rows;
  const sign = order.down ? -1 : 1;
  const keyed = rows.map((row) => ({ row, key: by(row) }));
  keyed.sort((a, b) => (a.key < b.key ? -sign : a.key > b.key ? sign : 0));
  return keyed.map(({ row }) => row);
}

/**
 * @param {HTMLElement | null} box
 * @param {number} top of what is to be seen, below the head
 * @param {number} height
 */
function reveal(box, top, height) {
  if (!box) return;
  const head = /** @type {HTMLElement} */ (box.firstElementChild).offsetHeight;
  if (top < box.scrollTop) box.scrollTop = top;
  else if (top + height > box.scrollTop + box.clientHeight - head) box.scrollTop = top + height - box.clientHeight + head;
}

/**
 * Which rows can be seen.
 * @param {{current: HTMLElement | null}} box
 * @param {number} rowHeight
 */
function useVisible(box, rowHeight) {
  const [view, setView] = useState({ first: 0, count: 30 });
  useEffect(() => {
    const element = box.current;
    if (!element) return undefined;
    const look = () => {
      const next = { first: Math.floor(element.scrollTop / rowHeight), count: Math.ceil(element.clientHeight / rowHeight) + 1 };
      setView((before) => (before.first === next.first && before.count === next.count ? before : next));
    };
    const watcher = new ResizeObserver(look);
    watcher.observe(element);
    element.addEventListener('scroll', look, { passive: true });
    look();
    return () => { watcher.disconnect(); element.removeEventListener('scroll', look); };
  }, [rowHeight]);
  return view;
}
