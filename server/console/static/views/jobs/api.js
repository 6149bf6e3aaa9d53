/** Jobs as the server tells of them. */

/**
 * @typedef {object} Job
 * @property {string} id
 * @property {'validating_files' | 'queued' | 'running' | 'paused' | 'succeeded' | 'failed' | 'cancelled'} status
 * @property {number} created_at
 * @property {number | null} finished_at
 * @property {number | null} estimated_finish
 * @property {string} model
 * @property {string | null} fine_tuned_model
 * @property {{message: string, code: string, param: string | null} | null} error
 * @property {{step: number, total_steps: number, train_loss?: number} | null} progress
 * @property {number | null} trained_tokens
 * @property {Record<string, number | string>} hyperparameters
 * @property {{type: string}} method
 * @property {string | null} user_provided_suffix
 * @property {Record<string, any>} lora
 * @property {string[]} result_files
 * @property {string} training_file
 * @property {number} seed
 */

export const ENDED = new Set(['succeeded', 'failed', 'cancelled']);

/** @type {Record<string, [kind: string, text: string]>} */
const STATES = {
  validating_files: ['warn', 'checking its files'], queued: ['warn', 'waiting'], running: ['good', 'running'], paused: ['warn', 'paused'],
  succeeded: ['good', 'succeeded'], failed: ['bad', 'failed'], cancelled: ['', 'cancelled'],
};

/** @param {string} status @returns {[kind: string, text: string]} */
export function stateOf(status) {
  return STATES[status] ?? ['', status];
}

/** @param {string} id */
export function jobPath(id, deed = '') {
  return `v1/fine_tuning/jobs/${encodeURIComponent(id)}${deed && `/${deed}`}`;
}

/** @param {Job} job of 1; null: nobody knows */
export function shareOf(job) {
  if (job.status === 'succeeded') return 1;
  return job.progress ? job.progress.step / Math.max(1, job.progress.total_steps) : null;
}

/** @typedef {{line: number, file: string, message: string}} Fault */

/**
 * The faults of a check, which stand in its message a line each.
 * @param {string} message
 * @returns {Fault[]} line 0: of the whole file, or of none
 */
export function faultsOf(message) {
  return message.split('\n').map((text) => {
    const match = /^(?:(training_file|validation_file): )?(?:line (\d+): )?([\s\S]*)$/.exec(text);
    return { line: Number(match?.[2] ?? 0), file: match?.[1] ?? '', message: match?.[3] ?? text };
  });
}

/**
 * The events that tell what was measured, as columns.
 * @param {any[]} events the oldest first
 * @param {string[]} names of measures
 * @returns {(number | null)[][]} steps, then each measure
 */
export function curves(events, names) {
  /** @type {Map<number, Record<string, number>>} */
  const steps = new Map();
  for (const { type, data } of events) {
    if (type === 'metrics') steps.set(data.step, { ...steps.get(data.step), ...data });
  }
  const x = [...steps.keys()].sort((a, b) => a - b);
  return [x, ...names.map((name) => x.map((step) => steps.get(step)?.[name] ?? null))];
}
