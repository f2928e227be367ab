/** The items of the page: ids, texts, thumbnails and links, by row. */

import { FOLDER, readBytes, readJson } from './files.js';

export class Items {
  static async load(manifest) {
    const [content, pack] = await Promise.all([
      readJson(manifest, 'data/items.json'),
      manifest.thumbnails === 'pack' ? readBytes(manifest, 'data/thumbnails.bin') : null,
    ]);
    return new Items(manifest, content, pack);
  }

  /**
   * @param {object} manifest The description of the page.
   * @param {object} content `ids`, `texts` (or null), and `sizes` of thumbnails in bytes (or null).
   * @param {Uint8Array | null} pack All thumbnails, one after the other.
   */
  constructor(manifest, { ids, texts, sizes }, pack) {
    Object.assign(this, { manifest, ids, texts, pack });
    this.urls = new Map();
    this.begins = [0];
    for (const size of sizes ?? []) this.begins.push(this.begins.at(-1) + size);
  }

  id(row) {
    return String(this.ids[row]);
  }

  text(row) {
    return this.texts?.[row] ?? '';
  }

  /** The address of a thumbnail, or null if there is none. */
  thumbnail(row) {
    const { thumbnails, per_folder: most } = this.manifest;
    if (thumbnails === null || this.begins[row] === this.begins[row + 1]) return null;
    if (thumbnails === 'files') return new URL(`data/thumbnails/${Math.floor(row / most)}/${row}.webp`, FOLDER).href;
    if (!this.urls.has(row)) {
      const content = this.pack.subarray(this.begins[row], this.begins[row + 1]);
      this.urls.set(row, URL.createObjectURL(new Blob([content], { type: 'image/webp' })));
    }
    return this.urls.get(row);
  }

  /** The address of the image itself, which is opened only on a click; null if the page does not know it. */
  link(row) {
    const { links } = this.manifest;
    return links === null ? null : links + this.id(row).split('/').map(encodeURIComponent).join('/');
  }
}
