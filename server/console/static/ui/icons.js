/** Icons of one hand: lines of one width on a grid of 24, in the colour of the text beside them. */
import { html } from '../core/preact.js';

/** @type {Record<string, string>} */
const PATHS = {
  chat: 'M4 5.5h16v10H10l-4.5 4v-4H4z',
  arena: 'M4 4.5h6.5v15H4zM13.5 4.5H20v15h-6.5z',
  fleet: 'M12 3.5 20.5 8 12 12.5 3.5 8zM3.5 12 12 16.5 20.5 12M3.5 16 12 20.5 20.5 16',
  jobs: 'M4 19.5h16M6 16.5l4-6 3.5 3 5-8.5',
  operations: 'M3.5 12h4l2.5-7 4 14 2.5-7h4',
  server: 'M4 5h16v6H4zM4 13h16v6H4zM7.5 8h.01M7.5 16h.01',
  key: 'M14.5 4.5a5 5 0 1 1-4.4 7.4L4 18v2.5h3V18h2.5v-2.5l2.1-2.1M15.5 8.5h.01',
  leave: 'M13.5 5H5v14h8.5M10 12h10M16.5 8l4 4-4 4',
  plus: 'M12 5v14M5 12h14',
  close: 'M6 6l12 12M18 6 6 18',
  copy: 'M9 9h10.5v10.5H9zM6 15H4.5V4.5H15V6',
  check: 'M5 12.5l4.5 4.5L19 7.5',
  stop: 'M7 7h10v10H7z',
  send: 'M4 12 20 4.5 15 20l-3.5-6.5z',
  edit: 'M5 19l1-4L16 5l3 3L9 18zM13.5 7.5l3 3',
  branch: 'M7 4.5v15M7 14c6 0 10-2 10-7.5M14 9l3-3.5L20 9',
  retry: 'M19.5 12a7.5 7.5 0 1 1-2.2-5.3M19.5 4v4.5H15',
  trash: 'M5 7h14M9.5 7V4.5h5V7M7 7l.8 12.5h8.4L17 7M10.5 10.5v6M13.5 10.5v6',
  download: 'M12 4.5v10M8 11l4 4 4-4M5 19.5h14',
  upload: 'M12 15V4.5M8 8.5l4-4 4 4M5 19.5h14',
  search: 'M10.5 4.5a6 6 0 1 1 0 12 6 6 0 0 1 0-12zM15 15l5 5',
  sliders: 'M4 7h9M17 7h3M4 17h3M11 17h9M15 4.5v5M9 14.5v5',
  code: 'M8.5 7 4 12l4.5 5M15.5 7 20 12l-4.5 5',
  warning: 'M12 4 21 19.5H3zM12 10v4.5M12 17h.01',
  info: 'M12 3.5a8.5 8.5 0 1 1 0 17 8.5 8.5 0 0 1 0-17zM12 11v5.5M12 8h.01',
  down: 'M6 9.5l6 6 6-6',
  right: 'M9.5 6l6 6-6 6',
  left: 'M14.5 6l-6 6 6 6',
  up: 'M6 14.5l6-6 6 6',
  menu: 'M4 7h16M4 12h16M4 17h16',
  history: 'M4.5 12A7.5 7.5 0 1 1 7 17.6M4.5 8v4h4M12 8v4.5l3 1.5',
  link: 'M10 14l4-4M8.5 11 6 13.5a3.2 3.2 0 0 0 4.5 4.5l2.5-2.5M15.5 13l2.5-2.5A3.2 3.2 0 0 0 13.5 6L11 8.5',
  eye: 'M3 12s3.5-6 9-6 9 6 9 6-3.5 6-9 6-9-6-9-6zM12 9.5a2.5 2.5 0 1 1 0 5 2.5 2.5 0 0 1 0-5z',
  pin: 'M9 4.5h6l-.8 6 3.3 3.5h-11L9.8 10.5zM12 14v6',
  play: 'M8 5.5l11 6.5-11 6.5z',
  pause: 'M8 5.5v13M16 5.5v13',
  thumbUp: 'M4 11h3.5v8.5H4zM7.5 11l4-7c1.6 0 2.3 1.2 2 2.7L13 9.5h5.5c1.2 0 1.8 1 1.5 2.1l-1.6 6.3c-.3 1-1 1.6-2 1.6H7.5',
  thumbDown: 'M4 13h3.5V4.500H4zM7.5 13l4 7c1.6 0 2.3-1.200 2-2.700L13 14.500h5.500c1.200 0 1.800-1 1.500-2.100l-1.600-6.300c-.3-1-1-1.600-2-1.600H7.500',
  external: 'M10 5.5H5.5v13h13V14M13.5 4.5h6v6M19 5l-8 8',
};

/**
 * @param {{name: string, size?: number}} props
 */
export function Icon({ name, size = 18 }) {
  return html`
    <svg class="icon" width=${size} height=${size} viewBox="0 0 24 24" fill="none" stroke="currentColor"
      stroke-width="1.7" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true" focusable="false">
      <path d=${PATHS[name] ?? ''} />
    </svg>`;
}
