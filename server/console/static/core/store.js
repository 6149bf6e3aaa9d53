/** Values that several components show, and that tell them when they change. */
import { useEffect, useState } from './preact.js';

/** @template T */
export class Store {
  /** @param {T} value what it holds at first */
  constructor(value) {
    this.value = value;
    /** @type {Set<(value: T) => void>} */
    this.listeners = new Set();
  }

  /** @param {T} value what it holds from now on */
  set(value) {
    if (Object.is(value, this.value)) return;
    this.value = value;
    for (const listener of [...this.listeners]) listener(value);
  }

  /** @param {Partial<T>} changes of some fields of an object */
  patch(changes) {
    this.set({ ...this.value, ...changes });
  }

  /**
   * @param {(value: T) => void} listener called after each change
   * @returns {() => void} ends it
   */
  subscribe(listener) {
    this.listeners.add(listener);
    return () => { this.listeners.delete(listener); };
  }
}

/**
 * What a store holds; the component renders again when that changes.
 * @template T
 * @param {Store<T>} store
 * @returns {T}
 */
export function useStore(store) {
  const [value, setValue] = useState(store.value);
  useEffect(() => {
    setValue(() => store.value);
    return store.subscribe((next) => setValue(() => next));
  }, [store]);
  return value;
}
