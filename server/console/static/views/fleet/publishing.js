/** The work of publishing, and how far it is. */
import { ApiError, askJson } from '../../core/http.js';
import { upload } from '../../core/upload.js';
import { adapterPath } from './api.js';

const LOOK_EVERY = 400; // ms

/**
 * @param {string} path
 * @param {File[]} files
 * @param {string[]} tags
 * @param {AbortSignal} signal
 * @param {(share: number) => void} onProgress
 */
export function publishFiles(path, files, tags, signal, onProgress) {
  const form = new FormData();
  for (const tag of tags) form.append('tags', tag);
  for (const file of files) form.append('files', file, file.name);
  return upload({ path, method: 'PUT', form, signal, onProgress });
}

/**
 * @param {string} path
 * @param {string} source
 * @param {string[]} tags none: those that the adapter has stay
 * @param {AbortSignal} signal
 */
export function publishSource(path, source, tags, signal) {
  return askJson(path, { method: 'PUT', body: { source, ...(tags.length && { tags }) }, signal });
}

/**
 * The adapter once its publication has ended.
 * @param {string} name
 * @param {AbortSignal} signal
 * @param {(publication: {received_bytes: number, total_bytes: number | null}) => void} onProgress
 * @returns {Promise<any>}
 * @throws {ApiError} it failed; says everything that is wrong with the files
 */
export async function untilPublished(name, signal, onProgress) {
  for (;;) {
    const told = await askJson(adapterPath(name), { signal });
    const publication = told.publication;
    if (publication?.state === 'failed') throw new ApiError(422, publication.error?.message ?? 'It could not be published.', publication.error ?? {});
    if (!publication || publication.state === 'ready') return told;
    onProgress(publication);
    await new Promise((resolve) => { setTimeout(resolve, LOOK_EVERY); });
  }
}
