/** Says that the server is away, and when it is tried again. */
import { connection, tryNow } from '../core/connection.js';
import { html, useEffect, useState } from '../core/preact.js';
import { useStore } from '../core/store.js';
import { Button } from './button.js';
import { Icon } from './icons.js';

export function ConnectionBar() {
  const { online, retryAt } = useStore(connection);
  const [now, setNow] = useState(Date.now());
  useEffect(() => {
    if (online) return undefined;
    const clock = setInterval(() => setNow(Date.now()), 500);
    return () => clearInterval(clock);
  }, [online]);
  const wait = Math.max(0, Math.ceil((retryAt - now) / 1000));
  return html`
    <div role="status">
      ${!online && html`
        <div class="connection-bar">
          <${Icon} name="warning" size=${17} />
          <span>Not connected. <span aria-hidden="true">${wait > 0 ? `Next try in ${wait} s.` : 'Trying…'}</span></span>
          <${Button} kind="quiet" onClick=${tryNow}>Try now<//>
        </div>`}
    </div>`;
}
