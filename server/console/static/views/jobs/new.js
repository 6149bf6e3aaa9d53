/** A new job: files, what is learned and how, the check, and the start. */
import { access } from '../../core/access.js';
import { ApiError, askJson, isAbort } from '../../core/http.js';
import { html, useEffect, useRef, useState } from '../../core/preact.js';
import { go, linkTo } from '../../core/router.js';
import { upload } from '../../core/upload.js';
import { Button } from '../../ui/button.js';
import { DropZone } from '../../ui/drop.js';
import { Progress } from '../../ui/progress.js';
import { AllAsCurl } from '../../ui/request.js';
import { toast, toastFault } from '../../ui/toast.js';
import { ViewHead } from '../../ui/view_head.js';
import { CheckResult } from './check.js';
import { Settings, bodyOf, firstSettings } from './settings.js';

const JOBS = 'v1/fine_tuning/jobs';

/** @typedef {{file: File, id: string}} Uploaded */

/** @param {{model: string}} props */
export function NewJob({ model }) {
  const [settings, setSettings] = useState({ ...firstSettings(), model: model || (access.value.server.model ?? '') });
  const [files, setFiles] = useState(/** @type {Record<'training_file' | 'validation_file', Uploaded | null>} */ ({ training_file: null, validation_file: null }));
  const [stage, setStage] = useState(/** @type {{label: string, share: number | null} | null} */ (null));
  const [result, setResult] = useState(/** @type {{body: string, told: any, error: Error | null} | null} */ (null));
  const stop = useRef(new AbortController());
  useEffect(() => () => stop.current.abort(), []);
  const body = bodyOf(settings, files.training_file?.id ?? 'FILE', files.validation_file?.id ?? null);
  const current = JSON.stringify(body);

  const send = async (/** @type {'training_file' | 'validation_file'} */ which, /** @type {File | undefined} */ file) => {
    if (!file || stage) return;
    setStage({ label: `Sending ${file.name}`, share: 0 });
    setResult(null);
    try {
      const form = new FormData();
      form.append('purpose', 'fine-tune');
      form.append('file', file, file.name);
      const { id } = await upload({ path: 'v1/files', method: 'POST', form, signal: stop.current.signal, onProgress: (share) => setStage({ label: `Sending ${file.name}`, share }) });
      const now = { ...files, [which]: { file, id } };
      setFiles(now);
      if (now.training_file) await check(bodyOf(settings, now.training_file.id, now.validation_file?.id ?? null));
    } catch (error) {
      if (!isAbort(error)) toastFault(error);
    }
    setStage(null);
  };
  const check = async (/** @type {Record<string, any>} */ asked) => {
    setStage({ label: 'Checking the rows, and what training them takes', share: null });
    try {
      const told = await askJson(`${JOBS}?dry_run=true`, { body: asked, signal: stop.current.signal });
      setResult({ body: JSON.stringify(asked), told, error: null });
    } catch (error) {
      if (isAbort(error)) return;
      if (!(error instanceof ApiError)) toastFault(error);
      else setResult({ body: JSON.stringify(asked), told: null, error });
    }
    setStage(null);
  };
  const start = async () => {
    setStage({ label: 'Making the job', share: null });
    try {
      const job = await askJson(JOBS, { body });
      toast('The job is made');
      go(`jobs/${job.id}`);
    } catch (error) {
      setResult({ body: current, told: null, error: error instanceof Error ? error : new Error(String(error)) });
      setStage(null);
    }
  };
  const checked = result?.body === current;
  return html`
    <${ViewHead} title="New job"><a href=${linkTo('jobs')}>All jobs</a><//>
    <div class="new-job">
      <div class="stack">
        <${DropZone} label="Drop the rows to learn from" accept=".jsonl,.json,.txt" files=${files.training_file ? [files.training_file.file] : []} onFiles=${(/** @type {File[]} */ found) => send('training_file', found[0])}
          hint="JSON Lines: conversations (messages), prompt and completion, or preferences. At least 10 rows." />
        <details class="more" open=${files.validation_file !== null}>
          <summary>A file to validate with</summary>
          <${DropZone} label="Drop rows that are not learned" accept=".jsonl,.json,.txt" files=${files.validation_file ? [files.validation_file.file] : []} onFiles=${(/** @type {File[]} */ found) => send('validation_file', found[0])}
            hint="The step with the lowest loss on them is what is published." />
        </details>
        <section class="card" aria-label="Settings"><h2>Settings</h2><${Settings} settings=${settings} onChange=${setSettings} /></section>
      </div>
      <div class="stack">
        <section class="card" aria-label="Check" aria-busy=${stage !== null}>
          <h2>Check</h2>
          ${stage && html`<${Progress} label=${stage.label} share=${stage.share} />`}
          ${!stage && !result && html`<p class="hint">A file that is dropped is checked at once: what is wrong with which line, how much there is to learn, what that takes in memory and time.</p>`}
          ${result && html`<${CheckResult} told=${result.told} error=${result.error} files=${files} />`}
          ${result && !checked && html`<p class="hint">The settings have changed since.</p>`}
          <div class="line">
            <${Button} disabled=${!files.training_file || stage !== null} onClick=${() => check(body)}>${result ? 'Check again' : 'Check'}<//>
            <${Button} kind="primary" icon="play" disabled=${!files.training_file || !settings.model || stage !== null || Boolean(checked && result?.error)} onClick=${start}>Start training<//>
          </div>
          <${AllAsCurl} requests=${[
            ['send the rows', { path: 'v1/files', form: [['purpose', 'fine-tune'], ['file', `@${files.training_file?.file.name ?? 'rows.jsonl'}`]] }],
            ['check them', { path: `${JOBS}?dry_run=true`, body }], ['begin', { path: JOBS, body }],
          ]} />
        </section>
      </div>
    </div>`;
}
