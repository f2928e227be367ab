/** Files of the page: fetched from its own folder, and checked against their described size and checksum. */

/** A problem that the page shows as it is: a sentence of what is wrong and what to do. */
export class PageError extends Error {}

/** The folder of `index.html`, wherever the page was moved to. */
export const FOLDER = new URL('..', import.meta.url);

const FORMAT = 1;
const TABLE = new Uint32Array(256).map((_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});

/** CRC-32 of bytes, as zlib computes it. */
export function crc32(bytes) {
  let value = 0xffffffff;
  for (let place = 0; place < bytes.length; place++) value = TABLE[(value ^ bytes[place]) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

async function response(name) {
  let found;
  try {
    found = await fetch(new URL(name, FOLDER));
  } catch {
    throw new PageError(`${name} cannot be fetched; check the connection, and load the page again.`);
  }
  if (!found.ok) throw new PageError(`${name} is missing (HTTP ${found.status}); export the page again.`);
  return found;
}

/** The description of the page, `page.json`. */
export async function readManifest() {
  let manifest;
  try {
    manifest = await (await response('page.json')).json();
  } catch (error) {
    throw error instanceof PageError ? error : new PageError('page.json is damaged; export the page again.');
  }
  if (manifest?.format !== FORMAT) {
    throw new PageError('page.json is not of this version of the page; export the page again.');
  }
  return manifest;
}

/**
 * The bytes of a file.
 *
 * @param {object} manifest The description of the page, with the size and the checksum of the file.
 * @param {string} name Its path in the folder.
 * @param {(bytes: number) => void} advance Called with the bytes that have arrived since the last call.
 */
export async function readBytes(manifest, name, advance = () => {}) {
  const { bytes: size, crc32: checksum } = manifest.files[name];
  const reader = (await response(name)).body.getReader();
  const content = new Uint8Array(size);
  let length = 0;
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (length + part.value.length <= size) content.set(part.value, length);
      length += part.value.length;
      advance(part.value.length);
    }
  } catch {
    throw new PageError(`${name} broke off after ${length.toLocaleString('en')} bytes; load the page again.`);
  }
  if (length !== size) {
    const [found, expected] = [length, size].map((number) => number.toLocaleString('en'));
    throw new PageError(`${name} has ${found} bytes instead of ${expected}; load the page again, or export it again.`);
  }
  if (crc32(content) !== checksum) {
    throw new PageError(`${name} is damaged (its checksum is another); load the page again, or export it again.`);
  }
  return content;
}

/** The value of a JSON file, likewise. */
export async function readJson(manifest, name, advance) {
  return JSON.parse(new TextDecoder().decode(await readBytes(manifest, name, advance)));
}
