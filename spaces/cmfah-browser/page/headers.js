/** Formats and sizes of image files, from their first bytes, before anything is decoded. */

const text = (bytes, from, to) => String.fromCharCode(...bytes.subarray(from, to));

/**
 * The format, width and height of an image file, or null if it is none of JPEG, PNG, WebP, GIF and BMP.
 *
 * @param {Uint8Array} bytes The file, or its beginning.
 */
export function readHeader(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  try {
    if (text(bytes, 0, 8) === '\x89PNG\r\n\x1a\n') return found('PNG', view.getUint32(16), view.getUint32(20));
    if (/^GIF8[79]a/.test(text(bytes, 0, 6))) return found('GIF', view.getUint16(6, true), view.getUint16(8, true));
    if (text(bytes, 0, 2) === 'BM') return bitmap(view);
    if (text(bytes, 0, 4) === 'RIFF' && text(bytes, 8, 12) === 'WEBP') return webp(bytes, view);
    if (view.getUint16(0) === 0xffd8) return jpeg(view);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error; // the file ends within its header
  }
  return null;
}

function found(format, width, height) {
  return width > 0 && height > 0 ? { format, width, height } : null;
}

function bitmap(view) {
  if (view.getUint32(14, true) === 12) return found('BMP', view.getUint16(18, true), view.getUint16(20, true));
  return found('BMP', view.getInt32(18, true), Math.abs(view.getInt32(22, true)));
}

function webp(bytes, view) {
  const kind = text(bytes, 12, 16);
  const three = (at) => view.getUint16(at, true) + (view.getUint8(at + 2) << 16);
  if (kind === 'VP8X') return found('WebP', 1 + three(24), 1 + three(27));
  if (kind === 'VP8L') {
    const sizes = view.getUint32(21, true);
    return found('WebP', 1 + (sizes & 0x3fff), 1 + ((sizes >>> 14) & 0x3fff));
  }
  return kind === 'VP8 ' ? found('WebP', view.getUint16(26, true) & 0x3fff, view.getUint16(28, true) & 0x3fff) : null;
}

function jpeg(view) {
  for (let at = 2; ; ) {
    while (view.getUint8(at) === 0xff && view.getUint8(at + 1) === 0xff) at++; // fill bytes
    const [sign, marker] = [view.getUint8(at), view.getUint8(at + 1)];
    if (sign !== 0xff) return null;
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) {
      return found('JPEG', view.getUint16(at + 7), view.getUint16(at + 5));
    }
    at += 2 + view.getUint16(at + 2);
  }
}
