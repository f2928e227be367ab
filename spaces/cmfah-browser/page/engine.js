/** The engine behind the page: towers in ONNX Runtime, codes, and answers. It runs in a worker. */

import * as ort from '../npm/onnxruntime.js';
import { PageError, readBytes, readManifest } from './files.js';
import { pixelValues } from './images.js';
import { Codes, pack, unpack } from './search.js';
import { openTexts } from './texts.js';

const LONGEST_QUERY = 300;
// Milliseconds in which the first query arrives, before the tower of images occupies this worker.
const FIRST_QUERY = 100;
// A function that adds two vectors of 128 bits: valid only where WebAssembly has SIMD.
const WITH_SIMD = new Uint8Array([
  ...[0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0],
  ...[10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11],
]);
const NO_SIMD =
  'This browser runs WebAssembly without SIMD, so it cannot encode words and images; take a browser of 2023 or later. ' +
  'The images below still find images like them.';

export class Engine {
  /** @param {(message: object) => void} tell Called with `{progress}`, `{ready}` and `{problem}` while it loads. */
  constructor(tell) {
    this.tell = tell;
    this.towers = {};
    this.last = null;
  }

  /** Loads the codes and what texts need; what images need arrives meanwhile, for `loadImages`. */
  async load() {
    const manifest = (this.manifest = await readManifest());
    let arrived = 0;
    const total = Object.entries(manifest.files).reduce((sum, [name, { bytes }]) => sum + (isOurs(name) ? bytes : 0), 0);
    const advance = (bytes) => this.tell({ progress: (arrived += bytes) / total });
    this.codes = new Codes(await readBytes(manifest, 'data/codes.bin', advance), manifest.bits);
    if (!this.codes.count) throw new PageError('This page has no images to search; export it with an index that has some.');
    this.tell({ ready: 'codes' });
    if (!globalThis.WebAssembly?.validate(WITH_SIMD)) throw new PageError(NO_SIMD);
    this.vision = readBytes(manifest, manifest.towers.vision, advance);
    this.vision.catch(() => {}); // `loadImages` raises it
    const [wasm, texts, text] = await Promise.all([
      readBytes(manifest, 'npm/onnxruntime.wasm', advance),
      openTexts(manifest, advance),
      readBytes(manifest, manifest.towers.text, advance),
    ]);
    // One thread: several need headers that static hosts do not send.
    Object.assign(ort.env.wasm, { numThreads: 1, proxy: false, wasmBinary: wasm.buffer });
    this.texts = texts;
    this.towers.text = await this.#open('text', text);
    await this.#warmUp();
    this.tell({ ready: 'text' });
  }

  /**
   * Opens the tower of images once it has arrived.
   *
   * @param {(work: () => Promise<void>) => Promise<void>} enqueue Runs work after the queries that wait.
   */
  async loadImages(enqueue) {
    const bytes = await this.vision;
    await new Promise((resolve) => setTimeout(resolve, FIRST_QUERY));
    await enqueue(async () => {
      this.towers.vision = await this.#open('vision', bytes);
      this.tell({ ready: 'vision' });
    });
  }

  /** The first runs of a tower and of a search are slower than all others. */
  async #warmUp() {
    for (let run = 0; run < 3; run++) {
      const values = await this.#textValues([this.manifest.texts.pad_token_id, this.manifest.texts.pad_token_id], [1, 1]);
      this.codes.nearestByAqd(values, 1);
      this.codes.nearestByHamming(pack(values), 1);
    }
  }

  async #open(tower, bytes) {
    try {
      return await ort.InferenceSession.create(bytes, { executionProviders: ['wasm'] });
    } catch (error) {
      const reason = String(error.message ?? error).split('\n')[0].slice(0, 200);
      throw new PageError(`The ${tower} tower cannot be run in this browser (${reason}).`);
    }
  }

  /**
   * The answer to a query.
   *
   * @param {{text?: string, image?: Blob, row?: number, k: number, metric: string}} request A text, an image, the image
   *   of a row, or none of these: the last query again.
   */
  async answer({ text, image, row, k, metric }) {
    const start = performance.now();
    if (text !== undefined) this.last = await this.#ofText(text);
    else if (image !== undefined) this.last = await this.#ofImage(image);
    else if (row !== undefined) this.last = { values: unpack(this.codes.code(row)), ignored: [] };
    const encoded = performance.now();
    const { values, ignored } = this.last;
    const found =
      metric === 'hamming' ? this.codes.nearestByHamming(pack(values), k) : this.codes.nearestByAqd(values, k);
    const done = performance.now();
    return { ...found, ignored, values, encoding: encoded - start, searching: done - encoded };
  }

  async #ofText(text) {
    if (!text.trim()) throw new PageError('The query is empty; type some words.');
    if (text.length > LONGEST_QUERY) throw new PageError(`The query is longer than ${LONGEST_QUERY} characters; shorten it.`);
    const { ids, mask, known, ignored } = this.texts.read(text);
    if (!known) {
      const examples = this.manifest.examples.slice(0, 3).join(', ');
      throw new PageError(`The model knows none of these words${examples ? `; try for example: ${examples}` : ''}.`);
    }
    return { values: await this.#textValues(ids, mask ?? ids.map(() => 1)), ignored };
  }

  async #ofImage(image) {
    if (!this.towers.vision) throw new PageError('The image tower is still being loaded; try again in a moment.');
    const { values, shape } = await pixelValues(image, this.manifest.images);
    const pixels = new ort.Tensor('float32', values, shape);
    return { values: await this.#run('vision', { pixel_values: pixels }), ignored: [] };
  }

  #textValues(ids, mask) {
    const tensor = (numbers) => new ort.Tensor('int64', BigInt64Array.from(numbers, BigInt), [1, numbers.length]);
    return this.#run('text', { input_ids: tensor(ids), attention_mask: tensor(mask) });
  }

  async #run(tower, inputs) {
    const outputs = await this.towers[tower].run(inputs);
    const values = outputs[tower === 'text' ? 'text_embeds' : 'image_embeds']?.data;
    if (values?.length !== this.manifest.bits) {
      throw new PageError(`The ${tower} tower gives no codes of ${this.manifest.bits} bits; export the page again.`);
    }
    return Float32Array.from(values);
  }
}

/** Whether the engine reads a file; the others are the page's. */
function isOurs(name) {
  return !['data/items.json', 'data/thumbnails.bin'].includes(name);
}
