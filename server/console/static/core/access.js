/** Who the server takes us for: what the key may do, and what the server offers. */
import { ConnectionLost, askJson, refusals } from './http.js';
import { setKey } from './key.js';
import { Store } from './store.js';

/** @typedef {'infer' | 'manage' | 'admin'} Right */

/**
 * @typedef {object} Access
 * @property {'asking' | 'locked' | 'open'} state
 * @property {boolean} wrong whether a key was given that opens nothing
 * @property {Right[]} may
 * @property {string | null} tenant
 * @property {Record<string, boolean>} features
 * @property {{version?: string, model?: string, [fact: string]: unknown}} server
 */

/** @type {Access} */
const NOBODY = { state: 'asking', wrong: false, may: [], tenant: null, features: {}, server: {} };

/** @type {Store<Access>} */
export const access = new Store(NOBODY);

/** @param {Right} right whether the key has it */
export function mayDo(right) {
  return access.value.may.includes(right);
}

/** Ask the server anew. */
export async function loadAccess() {
  try {
    const told = await askJson('v1/access');
    if (!told.may.length) {
      access.set({ ...NOBODY, state: 'locked' });
      return;
    }
    const server = told.may.includes('infer') ? await askJson('version') : {}; // a key that only manages is not told
    access.set({ state: 'open', wrong: false, may: told.may, tenant: told.tenant, features: told.features, server });
  } catch (error) {
    if (!(error instanceof ConnectionLost)) throw error; // else it is tried again when the server is back
  }
}

/**
 * Use another key.
 * @param {string} key
 * @param {boolean} keep in this tab's session storage
 */
export async function signIn(key, keep) {
  setKey(key, keep);
  await loadAccess();
  if (access.value.state === 'locked') {
    setKey('');
    access.patch({ wrong: true });
  }
}

/** Forget the key. */
export async function signOut() {
  setKey('');
  await loadAccess();
}

/** Whenever a key is refused, look whether it opens anything at all. */
refusals.subscribe(() => { if (access.value.state === 'open') void loadAccess(); });
