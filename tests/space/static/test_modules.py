"""The page's modules, each called in the browser with the inputs of its reference in Python."""

import base64
import io
import json
import random
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from cmfah_hf.expansion import GraphExpander
from cmfah_hf.models.backbone_tokenizer import load_backbone_tokenizer
from cmfah_hf.models.similar_words import SimilarWords
from cmfah_hf.models.tokenization_cmfah import normalize_text, split_words
from cmfah_hf.models.word_rules import WordRules
from cmfah_hf.retrieval import HashIndex
from cmfah_hf.retrieval.codes import pack
from cmfah_hf.space.settings import bundled_space
from cmfah_hf.space.static.sources import npm_parts
from cmfah_hf.space.static.texts import TOKENIZER, TOKENIZER_CONFIG, _encoder_files, _folding, _graph

TEXTS = (
    "", " ", "New-York's café, #Sunset!", "ÅNGSTRÖM Σίσυφος ΟΔΟΣ İstanbul", "ﬁsh ½ ① ㎏ Ⅷ", "犬と海 ひらがなカタカナ",
    "l’été d'hiver rock'n'roll 'quoted' it''s", "👍🏽 sun☀️ 🏳️‍🌈", "नमस्ते दुनिया", "كِتَابٌ أحمر ٣٤", "שָׁלוֹם", "a\ufffdb",
    "x\u0301\u0301y",
    "e\u0301té", "２０２１年", "don’t’", "[PAD] [UNK]", "a_b-c.d", "\u200bzero\u200dwidth", "𝐛𝐨𝐥𝐝 𠀀𠀁", "ǅ ŉ ΐ ẞ ŐŰ",
)  # fmt: skip


def random_texts(count: int, seed: int) -> list[str]:
    """Texts of characters of all assigned scripts, with marks, apostrophes and separators between them."""
    draw = random.Random(seed)
    kinds = [(0x20, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F),
             (0x1E00, 0x1FFF), (0x2000, 0x2BFF), (0x3040, 0x30FF), (0x4E00, 0x4F00), (0xFB00, 0xFFEF),
             (0x1D400, 0x1D7FF), (0x1F300, 0x1F6FF)]  # fmt: skip
    texts = []
    for _ in range(count):
        letters = [draw.choice("'’ -\u0301a") if draw.random() < 0.3 else chr(draw.randint(*draw.choice(kinds)))
                   for _ in range(draw.randint(1, 20))]  # fmt: skip
        texts.append("".join(letter for letter in letters if unicodedata.category(letter) not in ("Cn", "Cs")))
    return texts


def call(page, module: str, expression: str, argument=None):
    """The value of an expression of a module `m` and an argument `given`."""
    return page.evaluate(
        f"async given => {{ const m = await import('/page/{module}.js'); return {expression}; }}", argument
    )


def test_words_are_those_of_python(modules):
    texts = [*TEXTS, *random_texts(3_000, 1)]
    found = call(modules, "words", "given.map(m.splitWords)", texts)
    assert found == [split_words(text) for text in texts]


@pytest.mark.slow
def test_every_character_separates_or_belongs_to_words_as_in_python(modules):
    """Except where the tokenizers library has no decomposition of a character yet that browsers have."""
    letters = [chr(code) for code in range(0x21, 0x32000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    expected = [split_words(f"a{letter}b {letter}") for letter in letters]
    expression = r"Array.from(given, letter => m.splitWords(`a${letter}b ${letter}`).join(' ')).join('\n')"
    found = call(modules, "words", expression, "".join(letters)).split("\n")
    differ = [letter for letter, own, words in zip(letters, found, expected, strict=True) if own != " ".join(words)]
    assert len(letters) > 130_000
    newer = {letter for letter in differ if normalize_text(letter) != unicodedata.normalize("NFKC", letter).lower()}
    assert set(differ) == newer
    assert len(newer) < 100


def test_half_of_a_character_is_refused_as_in_python(modules):
    made = """(() => {
      const settings = {prompt: '', unknown_words: 'ignore', unk_token_id: 1};
      const texts = new m.WordTexts(settings, {vocabulary: ['[PAD]', '[UNK]', 'sun'], folding: null}, null);
      const found = [texts.read('Sun 🌞 moon').ids];
      try { texts.read('sun \\ud800'); } catch (error) { found.push(error.message); }
      return found;
    })()"""
    assert call(modules, "texts", made) == [
        [2, 1, 1],
        "The text contains half of a character (a lone surrogate); type it again.",
    ]


def test_marks_are_folded_as_in_python(modules):
    rules = WordRules(fold_marks=True)
    texts = [*TEXTS, "آأإٱ ىیے ةۀہ ک ٠١٢ ۳۴ ـــ", *random_texts(300, 2)]
    found = call(modules, "words", "given[0].map(text => m.wordsOf(text, given[1]))", [texts, _folding()])
    assert found == [rules.words(text) for text in texts]


def test_unknown_words_are_read_as_the_same_similar_words(modules):
    known = [
        "segel",
        "boot",
        "hund",
        "hunde",
        "sonne",
        "untergang",
        "garten",
        "haus",
        "tür",
        "sea",
        "see",
        "𝒳yz",
        "meer",
    ]
    draw = random.Random(0)
    words = ["segelboote", "sonnenuntergang", "gartenhaustür", "haustier", "katze", "x", "hundehaus", "a" * 61]
    words += ["".join(draw.sample("aehinorstu𝒳ü", draw.randint(1, 9))) for _ in range(300)]
    words += [draw.choice(known) + draw.choice(["", "s", "es", "n"]) + draw.choice(known) for _ in range(200)]
    words += [word[:place] + draw.choice("aeo") + word[place:] for word in known for place in range(len(word))]
    made = "(() => { const s = new m.SimilarWords(given[0]); return given[1].map(word => s.of(word)); })()"
    similar = SimilarWords(known)
    assert call(modules, "words", made, [sorted(known), words]) == [similar.of(word) for word in words]


@pytest.mark.parametrize("changes", [{}, {"word_weights": "idf", "top_k": None}, {"walk_length": 1}, {"top_k": 0},
                                     {"walk_length": 9, "min_probability": 0.02}])  # fmt: skip
def test_texts_are_expanded_by_the_same_words(modules, changes):
    expander = GraphExpander.load(bundled_space() / "model")
    for name, value in changes.items():
        setattr(expander, name, value)
    settings, content = _graph(expander)
    draw = random.Random(3)
    words = [*expander.graph.vocabulary, "zebra", "unknown"]
    texts = [[], ["zebra"], ["boat", "boat", "sun"], *([draw.choice(words) for _ in range(4)] for _ in range(60))]
    made = """(() => {
      const bytes = Uint8Array.from(atob(given[1]), character => character.charCodeAt());
      const graph = new m.WordGraph(given[0], bytes);
      return given[2].map(words => graph.expand(words));
    })()"""
    found = call(modules, "graph", made, [settings, base64.b64encode(content).decode(), texts])
    assert found == [expander.expand(" ".join(own))[len(own) :] for own in texts]


@pytest.mark.parametrize(("bits", "items"), [(8, 300), (24, 500), (64, 2_000), (128, 100), (64, 1)])
def test_the_nearest_items_are_those_of_an_index(modules, bits, items):
    """With many ties, by scores that are equal to the last bit, in the same order."""
    draw = np.random.default_rng(bits)
    codes = pack(draw.standard_normal((items, bits)))
    codes[items // 2 :] = codes[: items - items // 2]  # every code twice
    queries = np.tanh(draw.standard_normal((6, bits))).astype(np.float32)
    queries[0] = np.sign(queries[0])
    queries[1] = np.round(queries[1] * 2) / 2  # halves of the grid, and zeros
    queries[2] = (np.arange(bits) - bits / 2 + 0.5) * 2.0**-14  # halfway between two steps of the grid
    index = HashIndex(bits)
    index.add(codes)
    made = """(() => {
      const codes = new m.Codes(Uint8Array.from(given[0]), given[1]);
      return given[2].map(values => [
        codes.nearestByHamming(m.pack(Float32Array.from(values)), given[3]),
        codes.nearestByAqd(Float32Array.from(values), given[3]),
      ]);
    })()"""
    k = 20
    found = call(modules, "search", made, [codes.ravel().tolist(), bits, queries.tolist(), k])
    for place, metric in enumerate(("hamming", "aqd")):
        expected = index.search(queries, k=min(k, items), metric=metric)
        assert [one[place]["rows"] for one in found] == expected.ids.tolist()
        assert [one[place]["scores"] for one in found] == expected.scores.tolist()


@pytest.mark.parametrize(("resample", "mode"), [(2, InterpolationMode.BILINEAR), (3, InterpolationMode.BICUBIC)])
@pytest.mark.parametrize("size", [(128, 128), (451, 300), (50, 37), (64, 200), (64, 64), (1, 1), (1000, 3)])
def test_resized_pixels_are_those_of_pytorch(modules, resample, mode, size):
    draw = np.random.default_rng(0)
    width, height = size
    pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels[::2] = pixels[::2] // 128 * 255  # hard edges, which bicubic filters overshoot
    rgba = np.dstack([pixels, np.full((height, width, 1), 255, np.uint8)])
    made = """(() => {
      const [encoded, [width, height], to, resample] = given;
      const rgba = Uint8ClampedArray.from(atob(encoded), character => character.charCodeAt());
      const resizer = new m.Resizer([width, height], to, resample);
      const strip = 7;
      for (let row = 0; row < height; row += strip) {
        const rows = Math.min(strip, height - row);
        resizer.add(rgba.subarray(row * width * 4, (row + rows) * width * 4), row, rows);
      }
      return [...resizer.finish()];
    })()"""
    found = call(modules, "resizing", made, [base64.b64encode(rgba.tobytes()).decode(), size, [64, 48], resample])
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = transforms.resize(tensor, [48, 64], mode, antialias=True).permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(found).reshape(48, 64, 3), expected)


def test_sizes_in_the_headers_of_images_are_those_of_pillow(modules):
    files = []
    for name in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        for size in ((1, 1), (31, 257), (300, 20)):
            for options in ({}, {"lossless": True}) if name == "WEBP" else ({"progressive": True}, {}):
                buffer = io.BytesIO()
                extra = {"exif": b"Exif\0\0" + bytes(300)} if name == "JPEG" else {}
                Image.new("RGB", size, "teal").save(buffer, name, **options, **extra)
                files.append((buffer.getvalue(), {"format": {"WEBP": "WebP"}.get(name, name),
                                                  "width": size[0], "height": size[1]}))  # fmt: skip
    animated = io.BytesIO()
    frames = [Image.new("RGBA", (40, 30), color) for color in ("red", "blue")]
    frames[0].save(animated, "WEBP", save_all=True, append_images=frames[1:])
    files.append((animated.getvalue(), {"format": "WebP", "width": 40, "height": 30}))
    made = "given.map(one => m.readHeader(Uint8Array.from(atob(one), character => character.charCodeAt())))"
    found = call(modules, "headers", made, [base64.b64encode(content).decode() for content, _ in files])
    assert found == [expected for _, expected in files]


def test_damaged_headers_raise_nothing(modules):
    draw = random.Random(5)
    whole = []
    for name in ("PNG", "JPEG", "GIF", "BMP", "WEBP"):
        buffer = io.BytesIO()
        Image.new("RGB", (60, 40), "teal").save(buffer, name)
        whole.append(buffer.getvalue())
    files = [b"", b"\xff\xd8", b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(100), b"\xff" * 300]
    for _ in range(2_000):
        content = bytearray(draw.choice(whole)[: draw.randint(0, 400)])
        for _ in range(draw.randint(0, 8)):
            if content:
                content[draw.randrange(min(len(content), 60))] = draw.randrange(256)
        files.append(bytes(content))
    made = """given.map(one => {
      const found = m.readHeader(Uint8Array.from(atob(one), character => character.charCodeAt()));
      return found === null || (found.width > 0 && found.height > 0);
    }).every(Boolean)"""
    assert call(modules, "headers", made, [base64.b64encode(content).decode() for content in files])


def test_checksums_are_those_of_zlib(modules):
    import zlib

    contents = [b"", b"a", bytes(range(256)) * 5]
    found = call(modules, "files", "given.map(one => m.crc32(Uint8Array.from(one)))", [list(one) for one in contents])
    assert found == [zlib.crc32(one) for one in contents]


def _word_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.train_from_iterator(CORPUS, trainer)
    pairs = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pairs)
    return tokenizer


def _byte_pairs() -> Tokenizer:
    """As CLIP's: lower case, a pattern for words, bytes, and an end of words."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]", end_of_word_suffix="</w>"))
    parts = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(parts)
    pattern = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    split = pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), False, False)
    return tokenizer


def _pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.StripAccents()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="[UNK]")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
    return tokenizer


CORPUS = [
    "a dog on the beach",
    "Two Boats at sea, the sun's light",
    "éléphant straße ΟΔΟΣ",
    "犬 と 海",
    "1234 photos!",
] * 4


@pytest.mark.slow
@pytest.mark.parametrize("make", [_word_pieces, _byte_pairs, _pieces])
@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_of_encoders_are_those_of_python(modules, npm, make, side, tmp_path):
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    settings = names | {"model_max_length": 14, "padding_side": side}
    make().save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_backbone_tokenizer(tmp_path / "tokenizer.json", settings)
    files = _encoder_files(SimpleNamespace(tokenizer=tokenizer), "here")
    texts = [*TEXTS, "[SEP] in a [PAD] text", "a\nb\tc", *CORPUS, *random_texts(300, 4), "x" * 200]
    padded = side == "left"
    own = {"max_length": 14, "padding": "max_length" if padded else "longest", "padding_side": side, "pad_token_id": 0,
           "prompt": "a "}  # fmt: skip
    modules.route("**/npm/tokenizers.js", lambda route: route.fulfill(path=npm_parts(True)["npm/tokenizers.js"]))
    made = """await (async () => {
      const [content, options, settings, texts] = given;
      const { Tokenizer } = await import('/npm/tokenizers.js');
      const own = new m.EncoderTexts(settings, new Tokenizer(content, options), content);
      return texts.map(text => own.read(text)).map(({ids, mask, known}) => [ids, mask, known]);
    })()"""
    content, options = (json.loads(files[name]) for name in (TOKENIZER, TOKENIZER_CONFIG))
    found = call(modules, "texts", made, [content, options, own, texts])
    expected = []
    for text in texts:
        read = tokenizer("a " + text, truncation=True, padding="max_length" if padded else False)
        known = bool(tokenizer(text, add_special_tokens=False, truncation=True)["input_ids"])
        expected.append([read["input_ids"], read["attention_mask"], known])
    differ = [(text, one, other) for text, one, other in zip(texts, found, expected, strict=True) if one != other]
    assert differ == []
