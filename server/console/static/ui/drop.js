/** Where files are dropped, or chosen. */
import { html, useId, useRef, useState } from '../core/preact.js';
import { Button } from './button.js';
import { bytes } from './format.js';
import { Icon } from './icons.js';

/**
 * @param {DataTransfer} transfer
 * @returns {Promise<File[]>} what was dropped; of folders the files that lie directly in them
 */
async function filesOf(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry()).filter((entry) => entry !== null);
  if (!entries.length) return [...transfer.files];
  const found = await Promise.all(entries.map((entry) => (entry.isDirectory
    ? listed(/** @type {FileSystemDirectoryEntry} */ (entry)) : [entry])));
  return Promise.all(found.flat().filter((entry) => entry.isFile).map((entry) => opened(/** @type {FileSystemFileEntry} */ (entry))));
}

/** @param {FileSystemDirectoryEntry} folder @returns {Promise<FileSystemEntry[]>} */
async function listed(folder) {
  const reader = folder.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((/** @type {(value: FileSystemEntry[]) => void} */ resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return found;
    found.push(...some); // browsers give a hundred at a time
  }
}

/** @param {FileSystemFileEntry} entry @returns {Promise<File>} */
function opened(entry) {
  return new Promise((resolve, reject) => entry.file(resolve, reject));
}

/**
 * @param {{label: string, hint: any, files: File[], onFiles: (files: File[]) => void, multiple?: boolean, accept?: string}} props
 */
export function DropZone({ label, hint, files, onFiles, multiple = false, accept }) {
  const [over, setOver] = useState(false);
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  const id = useId();
  const drop = async (/** @type {DragEvent} */ event) => {
    event.preventDefault();
    setOver(false);
    if (event.dataTransfer) take(await filesOf(event.dataTransfer));
  };
  const take = (/** @type {File[]} */ found) => { if (found.length) onFiles(multiple ? found : found.slice(0, 1)); };
  return html`
    <div class=${`drop ${over ? 'over' : ''}`} role="group" aria-label=${label} aria-describedby=${id}
      onDragOver=${(/** @type {Event} */ event) => { event.preventDefault(); setOver(true); }} onDragLeave=${() => setOver(false)} onDrop=${drop}>
      <input type="file" class="unseen" tabIndex="-1" aria-hidden="true" ref=${input} multiple=${multiple} accept=${accept}
        onChange=${(/** @type {any} */ event) => { take([...event.currentTarget.files]); event.currentTarget.value = ''; }} />
      <${Icon} name="upload" size=${24} />
      <div class="drop-text">
        <strong>${label}</strong>
        <p class="hint" id=${id}>${hint}</p>
      </div>
      <${Button} onClick=${() => input.current?.click()}>Choose ${multiple ? 'files' : 'a file'}<//>
      ${files.length > 0 && html`
        <ul class="drop-files">${files.map((file) => html`<li key=${file.name}><span>${file.name}</span><span class="hint">${bytes(file.size)}</span></li>`)}</ul>`}
    </div>`;
}
