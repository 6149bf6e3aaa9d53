/** Publishing: files that are dropped, or a source that the server fetches. */
import { isAbort } from '../../core/http.js';
import { html, useEffect, useRef, useState } from '../../core/preact.js';
import { Button } from '../../ui/button.js';
import { Dialog } from '../../ui/dialog.js';
import { DropZone } from '../../ui/drop.js';
import { Checkbox, TextField } from '../../ui/field.js';
import { bytes } from '../../ui/format.js';
import { Progress } from '../../ui/progress.js';
import { ShowAsCurl } from '../../ui/request.js';
import { Tabs } from '../../ui/tabs.js';
import { toast } from '../../ui/toast.js';
import { adapterPath } from './api.js';
import { publishFiles, publishSource, untilPublished } from './publishing.js';

const WAYS = [{ id: 'files', label: 'Files' }, { id: 'source', label: 'A source' }];

/** @param {File[]} files a name to begin with */
function nameFrom(files) {
  const archive = files.length === 1 ? files[0]?.name.match(/^([A-Za-z0-9][\w.-]*?)\.(zip|tar|tar\.gz|tgz|gguf)$/i) : null;
  return archive?.[1] ?? '';
}

/**
 * @param {{sources: boolean, taken: import('./api.js').Adapter[], onClose: () => void, onChange: () => void, onDone: (name: string) => void}} props
 */
export function PublishDialog({ sources, taken, onClose, onChange, onDone }) {
  const [way, setWay] = useState('files');
  const [name, setName] = useState('');
  const [files, setFiles] = useState(/** @type {File[]} */ ([]));
  const [source, setSource] = useState('');
  const [tags, setTags] = useState('');
  const [keeps, setKeeps] = useState(true);
  const [stage, setStage] = useState(/** @type {{label: string, share: number | null, says?: string, sent?: boolean} | null} */ (null));
  const [fault, setFault] = useState('');
  const stop = useRef(/** @type {AbortController | null} */ (null));
  useEffect(() => () => stop.current?.abort(), []);
  const there = taken.some((each) => each.id === name);
  const list = tags.split(',').map((tag) => tag.trim()).filter(Boolean);
  const ready = name && (way === 'files' ? files.length > 0 : source.trim());
  const path = `${adapterPath(name || 'NAME')}${there && keeps ? '?replace=false' : ''}`;

  const submit = async (/** @type {Event} */ event) => {
    event.preventDefault();
    if (!ready || stage) return;
    const { signal } = (stop.current = new AbortController());
    setFault('');
    setStage({ label: way === 'files' ? 'Sending the files' : 'Asking the server to fetch it', share: way === 'files' ? 0 : null });
    try {
      if (way === 'files') await publishFiles(path, files, list, signal, (share) => setStage({ label: 'Sending the files', share }));
      else await publishSource(path, source.trim(), list, signal);
      onChange();
      const told = await untilPublished(name, signal, ({ received_bytes: got, total_bytes: all }) => {
        setStage({ label: all !== null && got < all ? 'The server fetches it' : 'The server checks it', share: all ? got / all : null, says: got ? bytes(got) : '', sent: true });
      });
      toast(`${name} serves revision ${told.revision}`);
      onDone(name);
    } catch (error) {
      if (isAbort(error)) return;
      setFault(error instanceof Error ? error.message : String(error));
      setStage(null);
      onChange();
    }
  };
  const shown = way === 'files'
    ? { path, method: 'PUT', form: [.../** @type {[string, string][]} */ ((files.length ? files : [{ name: 'adapter_config.json' }, { name: 'adapter_model.safetensors' }]).map((file) => ['files', `@${file.name}`])), .../** @type {[string, string][]} */ (list.map((tag) => ['tags', tag]))] }
    : { path, method: 'PUT', body: { source: source.trim(), ...(list.length && { tags: list }) } };
  const choose = (/** @type {File[]} */ found) => { setFiles(found); setFault(''); if (!name) setName(nameFrom(found)); };
  const fields = way === 'files'
    ? html`<${DropZone} label="Drop the adapter here" multiple files=${files} onFiles=${choose} hint="The files or the folder of a PEFT adapter (adapter_config.json, adapter_model.safetensors, …), one zip or tar of them, MLX or GGUF." />`
    : html`<${TextField} label="Source" value=${source} onInput=${setSource} placeholder="hf://org/repository@revision" hint="hf://…, s3://…, or a directory of the server that it was allowed to read." />`;
  return html`
    <${Dialog} title="Publish an adapter" onClose=${onClose}>
      <form class="stack" onSubmit=${submit}>
        ${sources ? html`<${Tabs} tabs=${WAYS} chosen=${way} onChoose=${setWay} label="Where it comes from">${fields}<//>` : fields}
        <${TextField} label="Name" value=${name} onInput=${setName} hint="Letters and digits of any script, and . _ : - /" />
        ${there && html`<${Checkbox} label="Keep what serves under this name" checked=${keeps} onChange=${setKeeps} hint="Take this off to publish a new revision: running requests keep theirs, and you can go back." />`}
        <${TextField} label="Tags" value=${tags} onInput=${setTags} hint="Separated by commas. May be left out." />
        ${stage && html`<${Progress} label=${stage.label} share=${stage.share}>${stage.says}<//>`}
        ${fault && html`<p class="fault whole" role="alert">${fault}</p>`}
        <${ShowAsCurl} request=${shown} />
        <div class="dialog-actions">
          <${Button} kind="quiet" onClick=${onClose}>${stage?.sent ? 'Close; it goes on' : 'Cancel'}<//>
          <${Button} kind="primary" type="submit" icon="upload" busy=${stage !== null} disabled=${!ready}>Publish<//>
        </div>
      </form>
    <//>`;
}
