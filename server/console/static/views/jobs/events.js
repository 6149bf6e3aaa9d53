/** What happens to a job, as it happens: its events, kept up over broken connections. */
import { connection } from '../../core/connection.js';
import { ConnectionLost, ask, isAbort } from '../../core/http.js';
import { useEffect, useState } from '../../core/preact.js';
import { readEvents } from '../../core/sse.js';
import { useStore } from '../../core/store.js';
import { jobPath } from './api.js';

const TELL_EVERY = 250; // ms: many steps may end in a moment

/**
 * @param {string} id of a job
 * @returns {{events: any[], error: Error | null, ended: boolean}} the oldest first
 */
export function useEvents(id) {
  const { epoch } = useStore(connection);
  const [state, setState] = useState({ events: /** @type {any[]} */ ([]), error: /** @type {Error | null} */ (null), ended: false });
  useEffect(() => {
    const stop = new AbortController();
    /** @type {any[]} */
    const events = []; // the stream begins with the first event, whenever it is asked for
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const tell = () => { timer = undefined; setState({ events: [...events], error: null, ended: false }); };
    const follow = async () => {
      try {
        const response = await ask(`${jobPath(id, 'events')}?stream=true`, { signal: stop.signal, headers: { accept: 'text/event-stream' } });
        for await (const { data } of readEvents(response)) {
          if (data === '[DONE]') continue;
          const event = JSON.parse(data);
          if (event.object !== 'fine_tuning.job.event') continue;
          events.push(event);
          timer ??= setTimeout(tell, TELL_EVERY);
        }
        clearTimeout(timer);
        setState({ events: [...events], error: null, ended: true });
      } catch (error) {
        if (isAbort(error) || stop.signal.aborted || error instanceof ConnectionLost) return; // the next epoch asks again
        setState((before) => ({ ...before, error: error instanceof Error ? error : new Error(String(error)) }));
      }
    };
    void follow();
    return () => { stop.abort(); clearTimeout(timer); };
  }, [id, epoch]);
  return state;
}
