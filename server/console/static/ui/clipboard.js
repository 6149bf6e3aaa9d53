/** Text to the clipboard, and files to the downloads. */
import { html, useState } from '../core/preact.js';
import { IconButton } from './button.js';
import { toastFault } from './toast.js';

/** @param {string} text */
export async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement('textarea'); // pages without TLS have no clipboard
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand('copy');
  area.remove();
  if (!done) throw new Error('The browser did not let the page copy.');
}

/** @param {{text: string | (() => string), label?: string, small?: boolean}} props */
export function CopyButton({ text, label = 'Copy', small = true }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    try {
      await copyText(typeof text === 'string' ? text : text());
      setDone(true);
      setTimeout(() => setDone(false), 1500);
    } catch (error) {
      toastFault(error);
    }
  };
  return html`<${IconButton} icon=${done ? 'check' : 'copy'} label=${done ? 'Copied' : label} small=${small} onClick=${copy} />`;
}

/**
 * @param {string} name of the file
 * @param {string} text
 * @param {string} [type]
 */
export function download(name, text, type = 'application/json') {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement('a');
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
