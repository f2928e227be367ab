/**
 * Antialiased resizing of 8-bit images with the arithmetic of PyTorch on CPUs: rows first, then columns, with weights of
 * 16 bits. A canvas scales with other filters, which changes bits of codes.
 */

const FILTERS = {
  2: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  3: { support: 2, weight: cubic },
};
const MOST_PRECISION = 22;

function cubic(x) {
  const a = -0.5;
  x = Math.abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
}

/**
 * The weights by which pixels of a line become those of a shorter or longer one.
 *
 * @param {number} from Pixels of the line.
 * @param {number} to Pixels of the new line.
 * @param {number} resample Pillow's number of the filter: 2 bilinear, 3 bicubic.
 */
export function lineWeights(from, to, resample) {
  const { support, weight } = FILTERS[resample];
  const scale = from / to;
  const stretch = Math.max(scale, 1);
  const starts = new Int32Array(to);
  const exact = [];
  let largest = 0;
  for (let pixel = 0; pixel < to; pixel++) {
    const center = scale * (pixel + 0.5);
    const first = Math.max(Math.trunc(center - support * stretch + 0.5), 0);
    const last = Math.min(Math.trunc(center + support * stretch + 0.5), from);
    const own = Array.from({ length: last - first }, (_, place) => weight((place + first - center + 0.5) / stretch));
    const sum = own.reduce((total, value) => total + value, 0);
    starts[pixel] = first;
    exact.push(own.map((value) => value / sum));
    for (const value of exact[pixel]) largest = Math.max(largest, value);
  }
  let precision = 0;
  while (precision < MOST_PRECISION && Math.trunc(0.5 + largest * 2 ** (precision + 1)) < 2 ** 15) precision++;
  const rounded = (value) => Math.trunc((value < 0 ? -0.5 : 0.5) + value * 2 ** precision);
  return { starts, weights: exact.map((own) => Int32Array.from(own, rounded)), precision };
}

/** Resizes images that arrive in strips of rows, without holding one in full. */
export class Resizer {
  /**
   * @param {[number, number]} from Width and height of the image.
   * @param {[number, number]} to Width and height of the resized image.
   * @param {number} resample As for `lineWeights`.
   */
  constructor([width, height], [toWidth, toHeight], resample) {
    this.size = [width, height];
    this.to = [toWidth, toHeight];
    this.across = width === toWidth ? null : lineWeights(width, toWidth, resample);
    this.down = height === toHeight ? null : lineWeights(height, toHeight, resample);
    this.narrow = new Uint8ClampedArray(toWidth * height * 3);
  }

  /** Takes the next rows as RGBA, of which alpha is not read. */
  add(rgba, row, rows) {
    const width = this.size[0];
    const toWidth = this.to[0];
    let out = row * toWidth * 3;
    for (let line = 0; line < rows; line++) {
      const begin = line * width * 4;
      for (let x = 0; x < toWidth; x++) {
        if (!this.across) {
          for (let color = 0; color < 3; color++) this.narrow[out++] = rgba[begin + 4 * x + color];
          continue;
        }
        const weights = this.across.weights[x];
        const first = begin + 4 * this.across.starts[x];
        const half = 2 ** (this.across.precision - 1);
        let [red, green, blue] = [half, half, half];
        for (let place = 0, at = first; place < weights.length; place++, at += 4) {
          red += weights[place] * rgba[at];
          green += weights[place] * rgba[at + 1];
          blue += weights[place] * rgba[at + 2];
        }
        this.narrow[out++] = red >> this.across.precision;
        this.narrow[out++] = green >> this.across.precision;
        this.narrow[out++] = blue >> this.across.precision;
      }
    }
  }

  /** The resized image as RGB. */
  finish() {
    if (!this.down) return this.narrow;
    const [toWidth, toHeight] = this.to;
    const stride = toWidth * 3;
    const image = new Uint8ClampedArray(stride * toHeight);
    for (let y = 0; y < toHeight; y++) {
      const weights = this.down.weights[y];
      const first = this.down.starts[y] * stride;
      for (let x = 0; x < stride; x++) {
        let sum = 2 ** (this.down.precision - 1);
        for (let place = 0, at = first + x; place < weights.length; place++, at += stride) {
          sum += weights[place] * this.narrow[at];
        }
        image[y * stride + x] = sum >> this.down.precision;
      }
    }
    return image;
  }
}
