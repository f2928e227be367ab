/** Images as `pixel_values` of the image tower, with the preprocessing of the model's image processor. */

import { PageError } from './files.js';
import { readHeader } from './headers.js';
import { Resizer } from './resizing.js';

const MOST_BYTES = 64 * 2 ** 20;
// 200 MB decoded.
const MOST_PIXELS = 50e6;
// Pixels that are read from the decoded image at a time.
const STRIP = 2 ** 20;
const LONGEST_SIDE = 2 ** 14;

/** The pixels `(1, 3, H, W)` of an image file as `{values, shape}`. Raises a `PageError` if it cannot be used. */
export async function pixelValues(file, settings) {
  await checkFile(file);
  let bitmap;
  try {
    // Upright, and like Pillow without applying color profiles.
    bitmap = await createImageBitmap(file, { imageOrientation: 'from-image', colorSpaceConversion: 'none' });
  } catch {
    throw new PageError('The image is damaged or cut short; take another one.');
  }
  try {
    return normalized(cropped(resized(bitmap, settings), settings), settings);
  } finally {
    bitmap.close();
  }
}

async function checkFile(file) {
  if (file.size > MOST_BYTES) {
    throw new PageError(`The file has ${Math.round(file.size / 2 ** 20)} MB; take one of at most 64 MB.`);
  }
  const header = readHeader(new Uint8Array(await file.arrayBuffer()));
  if (!header) throw new PageError('This is not a readable image; take a JPEG, PNG, WebP, GIF or BMP file.');
  const { width, height } = header;
  if (width * height > MOST_PIXELS) {
    const [across, down] = [width, height].map((side) => side.toLocaleString('en'));
    throw new PageError(`The image has ${across} x ${down} pixels; take one of at most ${MOST_PIXELS / 1e6} megapixels.`);
  }
}

/** `{pixels, width, height}` in RGB, transparency over white. */
function resized(bitmap, { do_resize: resizes, size, resample }) {
  const { width, height } = bitmap;
  const to = resizes ? sizeOf(width, height, size) : [width, height];
  if (Math.max(...to) > LONGEST_SIDE) throw new PageError('The image is too long and narrow; take another one.');
  const resizer = new Resizer([width, height], to, resample);
  const rows = Math.max(1, Math.floor(STRIP / width));
  const canvas = new OffscreenCanvas(width, Math.min(rows, height));
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.imageSmoothingEnabled = false;
  for (let row = 0; row < height; row += rows) {
    const now = Math.min(rows, height - row);
    context.fillStyle = 'white';
    context.fillRect(0, 0, width, now);
    context.drawImage(bitmap, 0, row, width, now, 0, 0, width, now);
    resizer.add(context.getImageData(0, 0, width, now).data, row, now);
  }
  return { pixels: resizer.finish(), width: to[0], height: to[1] };
}

function sizeOf(width, height, size) {
  if (!('shortest_edge' in size)) return [size.width, size.height];
  const short = size.shortest_edge;
  const long = Math.trunc((short * Math.max(width, height)) / Math.min(width, height));
  return width <= height ? [short, long] : [long, short];
}

/** The part around the center; where the image is smaller, with a black border. */
function cropped(image, { do_center_crop: crops, crop_size: size }) {
  if (!crops) return image;
  const { width, height } = size;
  const pixels = new Uint8ClampedArray(width * height * 3);
  const [left, top] = [offset(image.width, width), offset(image.height, height)];
  for (let y = Math.max(0, -top); y < Math.min(height, image.height - top); y++) {
    const first = Math.max(0, -left);
    const last = Math.min(width, image.width - left);
    const from = ((y + top) * image.width + left + first) * 3;
    pixels.set(image.pixels.subarray(from, from + (last - first) * 3), (y * width + first) * 3);
  }
  return { pixels, width, height };
}

function offset(has, wants) {
  return wants > has ? -Math.floor((wants - has) / 2) : Math.trunc((has - wants) / 2);
}

function normalized({ pixels, width, height }, settings) {
  const { do_rescale: rescales, rescale_factor: factor, do_normalize: normalizes } = settings;
  const values = new Float32Array(pixels.length);
  const area = width * height;
  for (let color = 0; color < 3; color++) {
    const unit = rescales ? 1 / factor : 1;
    const mean = normalizes ? settings.image_mean[color] * unit : 0;
    const deviation = normalizes ? settings.image_std[color] * unit : unit;
    const table = Float32Array.from({ length: 256 }, (_, value) => (value - mean) / deviation);
    for (let pixel = 0; pixel < area; pixel++) values[color * area + pixel] = table[pixels[3 * pixel + color]];
  }
  return { values, shape: [1, 3, height, width] };
}
