/** Expansion of queries by expected visits of walks on the word graph, as `cmfah_hf.expansion` computes them. */

import { roundHalfToEven } from './search.js';

const DECIMALS = 1e12;

export class WordGraph {
  /**
   * @param {object} settings `words`, `hops`, `top_k` (null: no limit), `min_share`, `edges` and `weighted`.
   * @param {Uint8Array} bytes Probabilities of hops (float64), weights of words (float64, if weighted), and as int32:
   *   the columns of the hops, where each row begins, and the alphabetical rank of each word.
   */
  constructor(settings, bytes) {
    this.settings = settings;
    this.numbers = new Map(settings.words.map((word, number) => [word, number]));
    const { edges } = settings;
    const size = settings.words.length;
    let place = bytes.byteOffset;
    const next = (Type, length) => {
      const array = new Type(bytes.buffer, place, length);
      place += array.byteLength;
      return array;
    };
    this.probabilities = next(Float64Array, edges);
    this.weights = settings.weighted ? next(Float64Array, size) : new Float64Array(size).fill(1);
    this.columns = next(Int32Array, edges);
    this.begins = next(Int32Array, size + 1);
    this.ranks = next(Int32Array, size);
  }

  has(word) {
    return this.numbers.has(word);
  }

  /** The words that the graph adds to the words of a text: the most visited first, equals in alphabetical order. */
  expand(words) {
    const { hops, top_k: most, min_share: least, words: names } = this.settings;
    const start = this.#start(words);
    if (!start.length) return [];
    const shares = this.#visits(start, hops);
    for (const [number] of start) shares[number] = 0;
    const found = [];
    shares.forEach((visits, number) => {
      const share = roundHalfToEven((visits / (hops + 1)) * DECIMALS) / DECIMALS;
      if (share > 0 && share >= least) found.push([share, this.ranks[number], names[number]]);
    });
    found.sort((one, other) => other[0] - one[0] || one[1] - other[1]);
    return found.slice(0, most ?? found.length).map(([, , word]) => word);
  }

  /** The known words of a text, each with the probability that a walk begins with it. */
  #start(words) {
    const known = [...new Set(words.map((word) => this.numbers.get(word)).filter((number) => number !== undefined))];
    known.sort((one, other) => one - other);
    const total = known.reduce((sum, number) => sum + this.weights[number], 0);
    return known.map((number) => [number, this.weights[number] / total]);
  }

  #visits(start, hops) {
    const size = this.settings.words.length;
    let visits = new Float64Array(size);
    for (const [number, share] of start) visits[number] = share;
    for (let hop = 0; hop < hops; hop++) {
      const next = new Float64Array(size);
      for (let row = 0; row < size; row++) {
        if (!visits[row]) continue;
        for (let edge = this.begins[row]; edge < this.begins[row + 1]; edge++) {
          next[this.columns[edge]] += visits[row] * this.probabilities[edge];
        }
      }
      for (const [number, share] of start) next[number] += share;
      visits = next;
    }
    return visits;
  }
}
