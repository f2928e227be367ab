/** Texts as tokens of the text tower, by the words of a vocabulary or by the tokenizer of a pretrained encoder. */

import { PageError, readBytes, readJson } from './files.js';
import { SimilarWords, splitWords, wordsOf } from './words.js';
import { WordGraph } from './graph.js';

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
    return new EncoderTexts(settings, new Tokenizer(tokenizer, options));
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
  constructor(settings, tokenizer) {
    this.settings = settings;
    this.tokenizer = tokenizer;
  }

  /** @returns {Reading} */
  read(text) {
    checkText(text);
    const known = this.tokenizer.encode(text, { add_special_tokens: false }).ids.length > 0;
    const ids = this.#cut(this.settings.prompt + text);
    const { padding, max_length: most, padding_side: side, pad_token_id: pad } = this.settings;
    const missing = padding === 'max_length' ? Math.max(0, most - ids.length) : 0;
    const filling = new Array(missing).fill(pad);
    const mask = [...ids.map(() => 1)];
    const zeros = filling.map(() => 0);
    return side === 'left'
      ? { ids: [...filling, ...ids], mask: [...zeros, ...mask], known, ignored: [] }
      : { ids: [...ids, ...filling], mask: [...mask, ...zeros], known, ignored: [] };
  }

  /** The tokens of a text, of a long one the first ones, between the same special tokens. */
  #cut(text) {
    const ids = this.tokenizer.encode(text).ids;
    const most = this.settings.max_length;
    if (most === null || ids.length <= most) return ids;
    const inner = this.tokenizer.encode(text, { add_special_tokens: false }).ids;
    const special = this.tokenizer.encode('').ids.length;
    const before = ids.findIndex((id) => id === inner[0]);
    return [
      ...ids.slice(0, before),
      ...inner.slice(0, most - special),
      ...ids.slice(ids.length - (special - before)),
    ];
  }
}

function checkText(text) {
  if (/\p{Surrogate}/u.test(text)) {
    throw new PageError('The text contains half of a character (a lone surrogate); type it again.');
  }
}
