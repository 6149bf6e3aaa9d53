/** Where the console begins. */
import { loadAccess } from './access.js';
import { App, loadAhead } from './app.js';
import { connection, watchConnection } from './connection.js';
import { html, render } from './preact.js';

const root = document.getElementById('app');
root?.replaceChildren(); // what the page shows until this runs
if (root) render(html`<${App} />`, root);

let epoch = connection.value.epoch;
connection.subscribe((now) => {
  if (now.epoch === epoch) return;
  epoch = now.epoch;
  void loadAccess(); // another server may answer now, with other keys
});
watchConnection();
loadAhead();
void loadAccess();
