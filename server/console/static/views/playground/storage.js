/** Conversations in this browser's database; nothing of them is kept on the server. */

const DATABASE = 'manylora';
const STORE = 'conversations';
const MOST_KEPT = 200;

/** @type {Promise<IDBDatabase> | undefined} */
let opened;

function database() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: 'id' });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

/**
 * @template T
 * @param {IDBTransactionMode} mode
 * @param {(store: IDBObjectStore) => IDBRequest<T>} work
 * @returns {Promise<T>}
 */
async function run(mode, work) {
  const store = (await database()).transaction(STORE, mode).objectStore(STORE);
  return new Promise((resolve, reject) => {
    const request = work(store);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/** @returns {Promise<import('./conversation.js').Conversation[]>} the latest first */
export async function allConversations() {
  const found = await run('readonly', (store) => store.getAll());
  return found.sort((a, b) => b.updated - a.updated);
}

/** @param {string} id @returns {Promise<import('./conversation.js').Conversation | undefined>} */
export async function loadConversation(id) {
  return run('readonly', (store) => store.get(id));
}

/** @param {import('./conversation.js').Conversation} conversation */
export async function saveConversation(conversation) {
  await run('readwrite', (store) => store.put(conversation));
}

/** Forget the oldest where there are too many. */
export async function pruneConversations() {
  for (const old of (await allConversations()).slice(MOST_KEPT)) await forgetConversation(old.id);
}

/** @param {string} id */
export async function forgetConversation(id) {
  await run('readwrite', (store) => store.delete(id));
}
