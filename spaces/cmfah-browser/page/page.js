/** The page: takes queries, shows answers. The engine works in a worker, so the page never freezes. */

import { FOLDER, PageError, readManifest } from './files.js';
import { Items } from './items.js';

// As in `offline.js`.
const CACHE = 'cmfah-browser';
const at = (id) => document.getElementById(id);
const worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module' });
const ready = new Set();
const waiting = new Map();
let [manifest, items] = [null, null];
let number = 0;
let shown = { rows: [], query: null };
let imageUrl = null;
let failure = null;

function say(message) {
  at('status').textContent = message;
}

function showProblem(message) {
  at('problem').textContent = message;
  at('problem').hidden = !message;
}

worker.onmessage = ({ data }) => {
  if (data.progress !== undefined) at('progress').value = data.progress;
  else if (data.ready) begin(data.ready);
  else if (data.number !== undefined) {
    waiting.get(data.number)(data);
    waiting.delete(data.number);
  } else stop(data.problem);
};
worker.onerror = () => stop('The search could not be started: a script is missing, or this browser is older than 2023.');

/** Ends the loading with a problem. Images already loaded still find images like them. */
function stop(message) {
  failure = message;
  at('progress').hidden = true;
  say('');
  if (ready.has('codes') && items && !ready.has('text')) showFirst();
  showProblem(message);
}

function begin(part) {
  ready.add(part);
  if (!items) return;
  if (ready.has('text') && at('search').disabled) {
    performance.mark('text-ready');
    at('search').disabled = false;
    say(`${items.ids.length.toLocaleString('en')} images, ${manifest.bits} bits each. The image tower is being loaded.`);
    const first = fromAddress() ?? manifest.examples[0];
    if (first) search({ text: first }, true);
    else showFirst();
  }
  if (ready.has('vision') && at('pick').disabled) {
    at('pick').disabled = false;
    at('progress').hidden = true;
    const bytes = manifest.files['data/codes.bin'].bytes;
    const images = items.ids.length.toLocaleString('en');
    say(`${images} images, ${manifest.bits} bits each: ${bytes.toLocaleString('en')} bytes. Press one to open it.`);
    document.documentElement.dataset.ready = '';
    keepForOffline();
  }
}

/** The first images, where there is no query to begin with. */
function showFirst() {
  const rows = Array.from({ length: Math.min(12, items.ids.length) }, (_, row) => row);
  draw(rows, []);
}

function fromAddress() {
  return new URLSearchParams(location.hash.slice(1)).get('q');
}

/**
 * Asks the worker, and shows its answer unless a newer query was asked meanwhile.
 *
 * @param {{text?: string, image?: Blob, row?: number}} query The query; none of these: the last one again.
 */
async function search(query, isFirst = false) {
  const own = ++number;
  const again = !Object.keys(query).length;
  const metric = document.querySelector('[name=metric]:checked').value;
  const begin = performance.now();
  at('answer').setAttribute('aria-busy', 'true');
  if (query.text !== undefined) at('words').value = query.text;
  const data = await new Promise((resolve) => {
    waiting.set(own, resolve);
    worker.postMessage({ number: own, ...query, k: Number(at('count').value), metric });
  });
  if (own !== number) return;
  at('answer').removeAttribute('aria-busy');
  showProblem(data.problem ?? '');
  if (data.problem) return;
  const { rows, scores, ignored } = data.answer;
  if (!again) showAsked(query);
  draw(rows, scores.map((score) => (metric === 'hamming' ? `${score} bits` : score.toFixed(1))));
  at('ignored').hidden = !ignored.length;
  at('ignored').textContent = `Unknown to the model and ignored: ${ignored.join(', ')}.`;
  const codes = items.ids.length.toLocaleString('en');
  const total = performance.now() - begin;
  at('line').textContent =
    `Encoded in ${milliseconds(data.answer.encoding)}; searched ${codes} codes in ${milliseconds(data.answer.searching)}.`;
  at('asked').hidden = false;
  shown.answer = { ...data.answer, metric, total };
  if (query.text !== undefined && !isFirst) history.replaceState(null, '', `#q=${encodeURIComponent(query.text)}`);
  // For programs and tests: what the page shows, and how long it took.
  document.dispatchEvent(new CustomEvent('answer', { detail: { ...data.answer, metric, total, ids: rows.map((row) => items.ids[row]) } }));
}

function milliseconds(time) {
  return time < 0.1 ? 'less than 0.1 ms' : `${time.toFixed(1)} ms`;
}

function showAsked(query) {
  if (imageUrl) URL.revokeObjectURL(imageUrl);
  imageUrl = query.image ? URL.createObjectURL(query.image) : null;
  const address = imageUrl ?? (query.row === undefined ? null : items.thumbnail(query.row));
  at('asked-image').hidden = !address;
  if (address) at('asked-image').src = address;
  if (query.text === undefined) at('words').value = '';
}

function draw(rows, scores) {
  shown.rows = rows;
  at('cards').replaceChildren(...rows.map((row, place) => card(row, scores[place])));
}

function card(row, score) {
  const [id, text, address] = [items.id(row), items.text(row), items.thumbnail(row)];
  const button = Object.assign(document.createElement('button'), { type: 'button', className: 'card', title: id });
  button.dataset.row = row;
  button.dataset.id = id;
  if (address) button.append(Object.assign(document.createElement('img'), { src: address, alt: '', loading: 'lazy' }));
  else button.classList.add('plain');
  if (score) button.append(Object.assign(document.createElement('span'), { className: 'score', textContent: score }));
  button.append(Object.assign(document.createElement('span'), { className: 'name', textContent: text || id }));
  const item = document.createElement('li');
  item.append(button);
  return item;
}

/** Opens the dialog of an answer. */
function open(row) {
  const [address, link, place] = [items.thumbnail(row), items.link(row), shown.rows.indexOf(row)];
  const view = at('view');
  view.dataset.row = row;
  at('view-image').hidden = !address;
  if (address) Object.assign(at('view-image'), { src: address, alt: items.text(row) || items.id(row) });
  at('view-name').textContent = items.id(row);
  at('view-text').textContent = items.text(row);
  at('view-link').hidden = link === null;
  if (link !== null) at('view-link').href = link;
  view.querySelector('[data-do=previous]').disabled = place <= 0;
  view.querySelector('[data-do=next]').disabled = place < 0 || place === shown.rows.length - 1;
  if (!view.open) {
    view.showModal();
    view.querySelector('[data-do=close]').focus();
  } else if (document.activeElement === document.body || document.activeElement?.disabled) {
    view.querySelector('[data-do=close]').focus();
  }
}

function act(action) {
  const row = Number(at('view').dataset.row);
  const place = shown.rows.indexOf(row);
  if (action === 'previous' && place > 0) open(shown.rows[place - 1]);
  else if (action === 'next' && place < shown.rows.length - 1) open(shown.rows[place + 1]);
  else if (action === 'close') at('view').close();
  else if (action === 'similar') {
    at('view').close();
    search({ row });
    scrollTo({ top: 0 });
  }
}

function searchByFile(file) {
  if (!ready.has('vision')) showProblem('The image tower is not loaded; try again in a moment.');
  else search({ image: file });
}

at('query').addEventListener('submit', (event) => {
  event.preventDefault();
  if (!at('search').disabled) search({ text: at('words').value });
});
at('pick').addEventListener('click', () => at('file').click());
at('file').addEventListener('change', () => {
  const [file] = at('file').files;
  at('file').value = ''; // so that the same file can be taken again
  if (file) searchByFile(file);
});
for (const control of document.querySelectorAll('[name=metric], #count')) {
  control.addEventListener('change', () => shown.answer && search({}));
}
at('cards').addEventListener('click', (event) => {
  const button = event.target.closest('.card');
  if (button) open(Number(button.dataset.row));
});
at('view').addEventListener('click', (event) => {
  const button = event.target.closest('[data-do]');
  if (button) act(button.dataset.do);
  else if (event.target === at('view')) act('close'); // beside the image
});
at('view').addEventListener('keydown', (event) => {
  const action = { ArrowLeft: 'previous', ArrowRight: 'next' }[event.key];
  if (action) act(action);
});
at('view').addEventListener('close', () => {
  document.querySelector(`.card[data-row="${at('view').dataset.row}"]`)?.focus();
});

const holdsFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files');
document.addEventListener('dragover', (event) => {
  if (!holdsFiles(event)) return;
  event.preventDefault();
  document.body.classList.add('dropping');
});
document.addEventListener('dragleave', (event) => {
  if (!event.relatedTarget) document.body.classList.remove('dropping');
});
document.addEventListener('drop', (event) => {
  document.body.classList.remove('dropping');
  if (!holdsFiles(event)) return;
  event.preventDefault();
  if (event.dataTransfer.files.length) searchByFile(event.dataTransfer.files[0]);
  else showProblem('There is no image in what was dropped; drop an image file.');
});
document.addEventListener('paste', (event) => {
  const file = [...(event.clipboardData?.files ?? [])][0];
  if (!file) return; // a text, which goes into the field
  event.preventDefault();
  searchByFile(file);
});

async function start() {
  manifest = await readManifest();
  at('examples').replaceChildren(
    ...manifest.examples.map((text) => {
      const button = Object.assign(document.createElement('button'), { type: 'button', textContent: text });
      button.addEventListener('click', () => !at('search').disabled && search({ text }));
      return button;
    }),
  );
  at('examples').hidden = !manifest.examples.length;
  items = await Items.load(manifest);
  for (const part of ready) begin(part);
  if (failure) stop(failure);
}

start().catch((error) => {
  if (!(error instanceof PageError)) throw error;
  stop(error.message);
});

// Without the network, the page is loaded again from what is kept here. Plain http from another machine has no workers of
// this kind; what is open then still works.
navigator.serviceWorker?.register(new URL('../offline.js', import.meta.url)).catch((error) => console.info(String(error)));

/** Keeps the files of the first visit, which its service worker did not see; later visits renew them. */
async function keepForOffline() {
  if (!navigator.serviceWorker || !globalThis.caches) return;
  try {
    const cache = await caches.open(CACHE);
    for (const name of ['', 'page.json', ...Object.keys(manifest.files)]) {
      const address = new URL(name, FOLDER).href;
      if (!(await cache.match(address))) await cache.add(new Request(address, { cache: 'force-cache' }));
    }
    document.documentElement.dataset.kept = '';
  } catch (error) {
    console.info(`The page is not kept for use without the network: ${error}`); // the disk may be full
  }
}
