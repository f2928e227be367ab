/** Words of texts, as `cmfah_hf.models.tokenization_cmfah` and `word_rules` find them, and similar known words. */

// Letters with their marks and apostrophes; single Han characters; pictographs. All other characters separate.
const HAN = '\\p{Script=Han}';
const WORD = new RegExp(
  `${HAN}|(?:(?!${HAN})[\\p{L}\\p{N}])(?:(?!${HAN})[\\p{L}\\p{M}\\p{N}])*` +
    `(?:['’](?:(?!${HAN})[\\p{L}\\p{M}\\p{N}])+)*|(?!\\uFFFD)\\p{So}`,
  'gu',
);
const MOST_LETTERS = 60;
const LEAST_PART = 3;
const LINKS = ['', 's', 'es', 'n', 'en', 'er', 'e'];
const GRAM_SIZES = [2, 3];
const LEAST_OVERLAP = 0.5;

/** The text in NFKC and lower case, each character by itself: no final form of a sigma. */
export function normalize(text) {
  return Array.from(text.normalize('NFKC'), (character) => character.toLowerCase()).join('');
}

/** The words of a text, in their order. */
export function splitWords(text) {
  return normalize(text).match(WORD) ?? [];
}

/** The words of a text by the rules of a model; `folding` maps characters to what they are read as, or is null. */
export function wordsOf(text, folding) {
  if (!folding) return splitWords(text);
  return splitWords(Array.from(normalize(text), (character) => folding[character] ?? character).join(''));
}

/** Finds the known words that an unknown word is read as: the parts of a compound, or the word spelled most alike. */
export class SimilarWords {
  /** @param {string[]} words The known words by their code points. */
  constructor(words) {
    this.words = words;
    this.known = new Set(words);
    this.sizes = [];
    this.ofGram = new Map();
    words.forEach((word, number) => {
      const grams = gramsOf(word);
      this.sizes.push(grams.size);
      for (const gram of grams) {
        if (!this.ofGram.has(gram)) this.ofGram.set(gram, []);
        this.ofGram.get(gram).push(number);
      }
    });
  }

  /** The known words that `word` is read as; none if no known word is similar. */
  of(word) {
    const letters = [...word];
    if (letters.length > MOST_LETTERS) return [];
    const parts = this.#parts(letters);
    return parts.length ? parts : this.#spelledAlike(word);
  }

  /** The fewest known words that a word is composed of; of equally many, those with the longest first ones. */
  #parts(letters) {
    const partsFrom = [...new Array(letters.length).fill(null), []];
    for (let first = letters.length - LEAST_PART; first >= 0; first--) {
      let best = null;
      for (let last = letters.length; last >= first + LEAST_PART; last--) {
        const part = letters.slice(first, last).join('');
        if (!this.known.has(part)) continue;
        for (const link of LINKS) {
          if (letters.slice(last, last + link.length).join('') !== link) continue;
          const rest = partsFrom[last + link.length];
          if (rest && (!best || rest.length + 1 < best.length)) best = [part, ...rest];
        }
      }
      partsFrom[first] = best;
    }
    return partsFrom[0] ?? [];
  }

  /** The known word with the largest overlap of character n-grams, the first of equals. */
  #spelledAlike(word) {
    const grams = gramsOf(word);
    const common = new Map();
    for (const gram of grams) {
      for (const number of this.ofGram.get(gram) ?? []) common.set(number, (common.get(number) ?? 0) + 1);
    }
    let best = -1;
    let largest = 0;
    for (const [number, count] of common) {
      const overlap = (2 * count) / (grams.size + this.sizes[number]);
      if (overlap > largest || (overlap === largest && number < best)) [best, largest] = [number, overlap];
    }
    return largest >= LEAST_OVERLAP ? [this.words[best]] : [];
  }
}

function gramsOf(word) {
  const bounded = ['<', ...word, '>'];
  const grams = new Set();
  for (const size of GRAM_SIZES) {
    for (let first = 0; first + size <= bounded.length; first++) grams.add(bounded.slice(first, first + size).join(''));
  }
  return grams;
}
