/** Dialogs: the browser's own, which keep the focus inside, close by Escape and give the focus back. */
import { html, useEffect, useId, useRef, useState } from '../core/preact.js';
import { Button, IconButton } from './button.js';

/**
 * @typedef {object} DialogProps
 * @property {string} title
 * @property {(() => void) | null} onClose null: it can't be closed
 * @property {any} children
 * @property {any} [actions] buttons at its end
 * @property {boolean} [wide]
 */

/** @param {DialogProps} props */
export function Dialog({ title, onClose, children, actions, wide = false }) {
  const box = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const id = useId();
  useEffect(() => {
    const before = document.activeElement;
    box.current?.showModal();
    return () => { if (before instanceof HTMLElement) before.focus(); };
  }, []);
  const cancel = (/** @type {Event} */ event) => {
    event.preventDefault();
    onClose?.();
  };
  // A browser may close it all the same when Escape is pressed twice.
  const closed = () => { if (onClose) onClose(); else box.current?.showModal(); };
  const outside = (/** @type {MouseEvent} */ event) => { if (event.target === box.current) onClose?.(); };
  return html`
    <dialog ref=${box} class=${`dialog ${wide ? 'wide' : ''}`} aria-labelledby=${id} onCancel=${cancel} onClose=${closed} onMouseDown=${outside}>
      <div class="dialog-body">
        <header class="dialog-head">
          <h2 id=${id}>${title}</h2>
          ${onClose && html`<${IconButton} icon="close" label="Close" onClick=${onClose} />`}
        </header>
        ${children}
        ${actions && html`<footer class="dialog-actions">${actions}</footer>`}
      </div>
    </dialog>`;
}

/**
 * Asks before something is done that can't be undone.
 * @param {{title: string, children: any, action: string, danger?: boolean, onConfirm: () => Promise<void> | void, onClose: () => void}} props
 */
export function Confirm({ title, children, action, danger = false, onConfirm, onClose }) {
  const [busy, setBusy] = useState(false);
  const [fault, setFault] = useState('');
  const confirm = async () => {
    setBusy(true);
    setFault('');
    try {
      await onConfirm();
      onClose();
    } catch (error) {
      setFault(error instanceof Error ? error.message : String(error));
      setBusy(false);
    }
  };
  const actions = html`
    <${Button} kind="quiet" onClick=${onClose}>Cancel<//>
    <${Button} kind=${danger ? 'danger' : 'primary'} busy=${busy} onClick=${confirm}>${action}<//>`;
  return html`
    <${Dialog} title=${title} onClose=${onClose} actions=${actions}>
      ${children}
      ${fault && html`<p class="fault" role="alert">${fault}</p>`}
    <//>`;
}
