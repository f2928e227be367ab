/**
 * Exact search over packed codes: Hamming distance by popcount, and AQD by one table of partial sums for each byte.
 *
 * Items are in the order that decides ties, so rows decide them here.
 */

/** AQD's grid of queries: all sums are exact in multiples of it. */
export const AQD_STEPS = 2 ** 14;

export class Codes {
  /**
   * @param {Uint8Array} bytes Codes of `bits / 8` bytes each, bit `j` in byte `j >> 3`, the least significant first.
   * @param {number} bits Bits of a code.
   */
  constructor(bytes, bits) {
    this.bits = bits;
    this.width = bits / 8;
    this.count = bytes.length / this.width;
    this.bytes = bytes;
    this.words = inWords(bytes, this.width, this.count);
  }

  /** The packed code of an item. */
  code(row) {
    return this.bytes.subarray(row * this.width, (row + 1) * this.width);
  }

  /** The `k` items with the smallest Hamming distance to a packed code: `{rows, scores}`. */
  nearestByHamming(code, k) {
    const { words, count, bits } = this;
    const query = inWords(code, this.width, 1);
    const size = query.length;
    const distances = new Uint16Array(count);
    const frequencies = new Uint32Array(bits + 1);
    for (let row = 0, place = 0; row < count; row++) {
      let distance = 0;
      for (let word = 0; word < size; word++) {
        let x = words[place++] ^ query[word];
        x -= (x >>> 1) & 0x55555555;
        x = (x & 0x33333333) + ((x >>> 2) & 0x33333333);
        distance += Math.imul((x + (x >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
      }
      distances[row] = distance;
      frequencies[distance]++;
    }
    // Where the answers of each distance begin; a counting sort keeps the order of the rows.
    const places = new Uint32Array(bits + 1);
    let found = 0;
    let largest = 0;
    for (; largest <= bits && found < k; largest++) {
      places[largest] = found;
      found += frequencies[largest];
    }
    const rows = new Uint32Array(Math.min(k, count));
    for (let row = 0; row < count; row++) {
      const distance = distances[row];
      if (distance < largest && places[distance] < rows.length) rows[places[distance]++] = row;
    }
    return { rows: [...rows], scores: Array.from(rows, (row) => distances[row]) };
  }

  /** The `k` items with the largest AQD `<z, b>` to the continuous code `z`: `{rows, scores}`. */
  nearestByAqd(values, k) {
    const { bytes, width, count } = this;
    const tables = tablesOf(values, width);
    const rows = new Array(Math.min(k, count));
    const scores = new Int32Array(rows.length);
    let held = 0;
    for (let row = 0, place = 0; row < count; row++) {
      let score = 0;
      for (let byte = 0; byte < width; byte++) score += tables[(byte << 8) | bytes[place++]];
      if (held === rows.length) {
        if (score <= scores[held - 1]) continue;
        held--;
      }
      let before = held++;
      for (; before > 0 && scores[before - 1] < score; before--) {
        scores[before] = scores[before - 1];
        rows[before] = rows[before - 1];
      }
      scores[before] = score;
      rows[before] = row;
    }
    return { rows, scores: Array.from(scores, (score) => score / AQD_STEPS) };
  }
}

/** The packed code of a continuous code: the bits of the values that are not negative. */
export function pack(values) {
  const code = new Uint8Array(values.length / 8);
  values.forEach((value, bit) => {
    if (value >= 0) code[bit >> 3] |= 1 << (bit & 7);
  });
  return code;
}

/** The values -1 and 1 of a packed code. */
export function unpack(code) {
  return Float32Array.from({ length: 8 * code.length }, (_, bit) => ((code[bit >> 3] >> (bit & 7)) & 1 ? 1 : -1));
}

/** A number rounded to a whole one, halves to the even one. */
export function roundHalfToEven(value) {
  const below = Math.floor(value);
  const part = value - below;
  return part < 0.5 || (part === 0.5 && below % 2 === 0) ? below : below + 1;
}

/** For each byte of a code and each of its values, the part of AQD that it contributes, in steps. */
function tablesOf(values, width) {
  const tables = new Int32Array(width * 256);
  for (let byte = 0; byte < width; byte++) {
    const steps = Array.from(values.slice(8 * byte, 8 * byte + 8), (value) => roundHalfToEven(value * AQD_STEPS));
    tables[byte * 256] = -steps.reduce((sum, step) => sum + step, 0);
    for (let value = 1; value < 256; value++) {
      const lowest = 31 - Math.clz32(value & -value);
      tables[byte * 256 + value] = tables[byte * 256 + (value & (value - 1))] + 2 * steps[lowest];
    }
  }
  return tables;
}

/** Codes as words of 32 bits, filled up with zeros. */
function inWords(bytes, width, count) {
  if (width % 4 === 0 && bytes.byteOffset % 4 === 0) {
    return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  }
  const padded = Math.ceil(width / 4) * 4;
  const copy = new Uint8Array(padded * count);
  for (let row = 0; row < count; row++) copy.set(bytes.subarray(row * width, (row + 1) * width), row * padded);
  return new Uint32Array(copy.buffer);
}
