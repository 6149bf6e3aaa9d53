/** Libraries that only some views need, fetched when one does. */
import { useEffect, useState } from '../core/preact.js';

/** @type {Map<string, Promise<any>>} */
const begun = new Map();

/**
 * What a module exports; null until it is there.
 * @template T
 * @param {string} name under which it is kept
 * @param {() => Promise<T>} load
 * @returns {T | null}
 */
export function useModule(name, load) {
  const [module, setModule] = useState(/** @type {T | null} */ (null));
  useEffect(() => {
    let shown = true;
    if (!begun.has(name)) begun.set(name, load());
    begun.get(name)?.then((loaded) => { if (shown) setModule(() => loaded); }, () => begun.delete(name));
    return () => { shown = false; };
  }, [name]);
  return module;
}
