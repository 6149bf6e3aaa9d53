/** What a view reads from the server, and keeps up to date while it is shown. */
import { connection } from './connection.js';
import { ConnectionLost, askJson, isAbort } from './http.js';
import { useCallback, useEffect, useState } from './preact.js';
import { useStore } from './store.js';

/**
 * @typedef {object} Resource
 * @property {any} data what was read last; null before
 * @property {Error | null} error why it could not be read
 * @property {boolean} loading
 * @property {() => void} reload
 */

/**
 * The JSON at a path. It is read again when the path changes, when the server was away, and every so often.
 * What was read last stays while it is read anew, so that nothing flickers.
 * @param {string | null} path null reads nothing
 * @param {{every?: number, read?: (path: string, options: {signal: AbortSignal}) => Promise<any>}} [options] every so many ms,
 *   while the page can be seen; `read`, which must always be the same function, reads what is not one answer in JSON
 * @returns {Resource}
 */
export function useResource(path, { every = 0, read: readPath = askJson } = {}) {
  const { epoch } = useStore(connection);
  const [turn, setTurn] = useState(0);
  const [state, setState] = useState(
    /** @type {{path: string | null, data: any, error: Error | null, loading: boolean}} */ (
      { path, data: null, error: null, loading: path !== null }
    ),
  );
  const reload = useCallback(() => setTurn((before) => before + 1), []);

  useEffect(() => {
    if (path === null) return undefined;
    const stop = new AbortController();
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    let timer;
    const read = async () => {
      try {
        const data = await readPath(path, { signal: stop.signal });
        setState({ path, data, error: null, loading: false });
      } catch (error) {
        if (isAbort(error) || stop.signal.aborted) return;
        const fault = error instanceof Error ? error : new Error(String(error));
        setState((before) => ({ path, data: before.path === path ? before.data : null, error: fault, loading: false }));
        if (error instanceof ConnectionLost) return; // the next epoch reads again
      }
      if (every) timer = setTimeout(look, every);
    };
    const look = () => {
      if (document.hidden) timer = setTimeout(look, every);
      else void read();
    };
    setState((before) => ({ path, data: before.path === path ? before.data : null, error: null, loading: true }));
    void read();
    return () => { stop.abort(); clearTimeout(timer); };
  }, [path, epoch, turn, every]);

  return { data: state.data, error: state.error, loading: state.loading, reload };
}
