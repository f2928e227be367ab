/** Texts as tokens of the text tower, by the words of a vocabulary or by the tokenizer of a pretrained encoder. */

import { PageError, readBytes, readJson } from './files.js';
import { SimilarWords, splitWords, wordsOf } from './words.js';
import { WordGraph } from './graph.js';

const FURTHER_HAN = /[\u{20000}-\u{2a6df}\u{2a700}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu;

/**
 * A text as the tower reads it.
 *
 * @typedef {object} Reading
 * @property {number[]} ids Tokens; none if the text has no word.
 * @property {boolean} known Whether the model knows any of it.
 * @property {string[]} ignored Words that neither the vocabulary nor the word graph has, each once.
 */

/** Reads what texts need, of the kind that the model has. */
export async function openTexts(manifest, advance) {
  const settings = manifest.texts;
  if (!settings.word_level) {
    const [{ Tokenizer }, tokenizer, options] = await Promise.all([
      import('../npm/tokenizers.js'),
      readJson(manifest, 'model/tokenizer.json', advance),
      readJson(manifest, 'model/tokenizer_config.json', advance),
    ]);
    return new EncoderTexts(settings, new Tokenizer(tokenizer, options), tokenizer);
  }
  const content = await readJson(manifest, 'data/words.json', advance);
  const graph = content.graph && new WordGraph(content.graph, await readBytes(manifest, 'data/graph.bin', advance));
  return new WordTexts(settings, content, graph);
}

/** Texts of a model with a table of words. */
export class WordTexts {
  constructor(settings, content, graph) {
    this.settings = settings;
    this.folding = content.folding;
    this.graph = graph;
    this.numbers = new Map(content.vocabulary.map((word, number) => [word, number]));
    this.similar = settings.unknown_words === 'similar' ? new SimilarWords(content.sorted) : null;
  }

  /** @returns {Reading} */
  read(text) {
    checkText(text);
    const own = this.#words(text);
    const expanded = this.graph ? [...splitWords(text), ...this.graph.expand(splitWords(text))].join(' ') : text;
    const readings = this.#words(expanded).map((word) => [word, this.#readAs(word)]);
    const ids = this.#prompt().concat(
      readings.flatMap(([word, read]) => (read.length ? read : [word]).map((token) => this.#number(token))),
    );
    const known = new Set(own.filter((word) => this.#readAs(word).length));
    if (this.graph) {
      for (const word of splitWords(text)) if (this.graph.has(word)) this.#words(word).forEach((part) => known.add(part));
    }
    return {
      ids,
      known: readings.some(([, read]) => read.length),
      ignored: [...new Set(own.filter((word) => !known.has(word)))],
    };
  }

  #words(text) {
    return wordsOf(text, this.folding);
  }

  #prompt() {
    return this.#words(this.settings.prompt).map((word) => this.#number(word));
  }

  #number(word) {
    return this.numbers.get(word) ?? this.settings.unk_token_id;
  }

  /** The known words that a word is read as: itself, similar ones, or none. */
  #readAs(word) {
    if (this.numbers.has(word)) return [word];
    return this.similar ? this.similar.of(word) : [];
  }
}

/** Texts of a model with a pretrained encoder, split by its own tokenizer. */
export class EncoderTexts {
  constructor(settings, tokenizer, content) {
    this.settings = settings;
    this.tokenizer = tokenizer;
    this.special = tokenizer.encode('').ids;
    // The special tokens before a text; `a` is a text that has tokens of its own.
    const whole = tokenizer.encode('a').ids;
    const inner = tokenizer.encode('a', { add_special_tokens: false }).ids;
    this.before = this.special.findIndex((_, place) => whole.slice(place, place + inner.length).join() === inner.join());
    if (this.before < 0) this.before = this.special.length;
    const normalizer = JSON.stringify(content.normalizer);
    this.lowercases = /"type":"Lowercase"|"lowercase":true/.test(normalizer);
    this.separatesHan = normalizer.includes('"handle_chinese_chars":true');
  }

  /** @returns {Reading} */
  read(text) {
    checkText(text);
    const known = this.#inner(text).length > 0;
    const ids = this.#cut(this.settings.prompt + text);
    const { padding, max_length: most, padding_side: side, pad_token_id: pad } = this.settings;
    const filling = new Array(padding === 'max_length' ? Math.max(0, most - ids.length) : 0).fill(pad);
    const [ones, zeros] = [ids.map(() => 1), filling.map(() => 0)];
    const isLeft = side === 'left';
    return {
      ids: isLeft ? [...filling, ...ids] : [...ids, ...filling],
      mask: isLeft ? [...zeros, ...ones] : [...ones, ...zeros],
      known,
      ignored: [],
    };
  }

  /** The tokens of a text without special ones. */
  #inner(text) {
    // As in Python, each character is lowered by itself: no final form of a sigma.
    if (this.lowercases) text = text.replaceAll('\u03a3', '\u03c3');
    // The library separates only those Han characters that are one unit of UTF-16.
    if (this.separatesHan) text = text.replace(FURTHER_HAN, ' $& ');
    return this.tokenizer.encode(text, { add_special_tokens: false }).ids;
  }

  /** The tokens of a text between the special ones; of a long text the first ones. */
  #cut(text) {
    const inner = this.#inner(text);
    const most = this.settings.max_length ?? Infinity;
    const kept = inner.slice(0, Math.max(0, most - this.special.length));
    return [...this.special.slice(0, this.before), ...kept, ...this.special.slice(this.before)];
  }
}

function checkText(text) {
  if (/\p{Surrogate}/u.test(text)) {
    throw new PageError('The text contains half of a character (a lone surrogate); type it again.');
  }
}
