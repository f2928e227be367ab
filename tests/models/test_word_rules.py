"""Rules for words: segmentation, folded marks, similar words; and processors with and without them."""

import builtins
import json
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cmfah_hf.models import CMFAHConfig, CMFAHProcessor
from cmfah_hf.models import word_rules as word_rules_module
from cmfah_hf.models.model_files import ModelFileError
from cmfah_hf.models.similar_words import SimilarWords
from cmfah_hf.models.tokenization_cmfah import normalize_text, split_words
from cmfah_hf.models.word_rules import WordRules, fold, needs_folding, needs_segmenter, rules_of, segment
from cmfah_hf.models.word_tokenizer import build_word_tokenizer

ALL = WordRules("icu", fold_marks=True)
# Letters, marks and separators of the scripts with rules, of others, and of any kind.
SCRIPTS = (
    "กขคงดวาเแไ่้ำะัี ກຂຄຳ ကခမျန်း កខគ្ុ 犬海岸海滩日 がでぶイヌボートーﾎﾞ々 ابتأإآىةكگیکـَُِّْ٣۴ שלוםָׁ abCé'’.,-3½ßİ한국어हिन्दी😀"
)
texts = st.text(st.one_of(st.sampled_from(SCRIPTS), st.characters(exclude_categories=("Cs", "Cn"))), max_size=40)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("สุนัขวิ่งบนชายหาด", "สุนัข วิ่ง บน ชายหาด"),
        ("น้ำทะเล 3ชั้น", "น้ำ ทะเล 3 ชั้น"),
        ("ຂ້ອຍຮັກພາສາລາວ", "ຂ້ອຍ ຮັກ ພາສາ ລາວ"),
        ("ខ្ញុំស្រឡាញ់ភាសាខ្មែរ", "ខ្ញុំ ស្រឡាញ់ ភាសាខ្មែរ"),
        ("မြန်မာစကားကိုချစ်တယ်", "မြန်မာ စကား ကို ချစ် တယ်"),
        ("犬がボートに乗る", "犬 が ボート に 乗 る"),
        ("Tシャツとｶﾒﾗ", "t シャツ と カメラ"),
        ("😀犬とネコ", "😀 犬 と ネコ"),
        ("海边的狗", "海 边 的 狗"),  # as without rules
    ],
)
def test_scripts_without_spaces_are_segmented(text, words):
    assert WordRules("icu").words(text) == [normalize_text(word) for word in words.split()]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("مَرْحَبًا بِالعالَمِ", "مرحبا بالعالم"),
        ("أحمد إلى آخر مدرسة كتـــاب", "احمد الي اخر مدرسه كتاب"),
        ("کتابی ٣۴", "كتابي 34"),
        ("שָׁלוֹם עוֹלָם", "שלום עולם"),
        ("ﺷﺠﺮﺓ", "شجره"),  # presentation forms
        ("café हिन्दी ñ", "café हिन्दी ñ"),  # marks of other scripts remain
    ],
)
def test_arabic_and_hebrew_are_folded(text, words):
    assert WordRules(fold_marks=True).words(text) == words.split()


@settings(max_examples=200)
@given(texts)
@example("\U0001ee0a")  # a mathematical yeh, which NFKC turns into the letter
def test_folding_is_idempotent_and_drops_marks_alone(text):
    folded = fold(text)
    assert fold(folded) == folded
    normal = normalize_text(text)
    kept = [each for each in normal if unicodedata.category(each) != "Mn" and each != "\u0640"]
    assert len([each for each in folded if unicodedata.category(each) != "Mn"]) == len(kept)
    if not needs_folding(text):
        assert folded == normal


@settings(max_examples=200)
@given(texts)
@example("0\u32d0")  # a circled kana, which NFKC turns into a kana
def test_segments_joined_give_the_text(text):
    """Segmentation only inserts boundaries, and only into scripts that need it."""
    assert "".join(WordRules("icu").words(text)) == "".join(split_words(text))
    joined = ["".join(each.split()) for each in (segment(text, han=True), normalize_text(text))]
    assert joined[0].replace("ำ", "ํา").replace("ຳ", "ໍາ") == joined[1].replace("ำ", "ํา").replace("ຳ", "ໍາ")
    if not needs_segmenter(text):
        assert WordRules("icu").words(text) == split_words(text)


@settings(max_examples=200)
@given(texts)
def test_words_joined_by_spaces_are_the_same_words(text):
    """So the tokenizer, which knows no rules, reads the words that the processor found."""
    words = ALL.words(text)
    assert split_words(" ".join(words)) == words


def test_invalid_rules_are_refused(tmp_path):
    assert rules_of(None, "x") == WordRules()
    assert rules_of({"segmenter": "icu"}, "x") == WordRules("icu")
    for wrong in ({"segmenter": "abc"}, {"fold_marks": 1}, {"other": True}, [], "icu", {"segmenter": ["icu"]}):
        with pytest.raises(ModelFileError, match="word_rules is"):
            rules_of(wrong, "x")


@pytest.fixture
def no_icu(monkeypatch):
    real = builtins.__import__

    def fail(name, *args, **options):
        if name.startswith("icu4py"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    word_rules_module._word_breaker.cache_clear()
    yield
    word_rules_module._word_breaker.cache_clear()


def test_parts_of_compounds_and_words_spelled_alike():
    similar = SimilarWords(["segel", "boot", "sonne", "untergang", "hund", "collie", "im", "собака"])
    assert similar.of("segelboot") == ["segel", "boot"]
    assert similar.of("sonnenuntergangs") == ["sonne", "untergang"]
    assert similar.of("hunde") == ["hund"]
    assert similar.of("собаки") == ["собака"]
    assert similar.of("xyzzy") == similar.of("") == similar.of("immi") == similar.of("segel" * 500) == []


@settings(max_examples=100)
@given(st.lists(st.text("abcdes", min_size=1, max_size=6), min_size=1, max_size=8), st.text("abcdes", max_size=14))
def test_similar_words_are_known_and_do_not_depend_on_the_order_of_the_vocabulary(vocabulary, word):
    found = SimilarWords(vocabulary).of(word)
    assert set(found) <= set(vocabulary)
    assert SimilarWords(dict.fromkeys(reversed(vocabulary))).of(word) == found
    if len(word) >= 6:  # two words of three letters or more
        assert SimilarWords([word[:3], word[3:]]).of(word) == [word[:3], word[3:]]


VOCABULARY = ["boat", "sea", "สุนัข", "วิ่ง", "海", "كتاب"]


def make(**options):
    return CMFAHProcessor.from_vocabulary(CMFAHConfig(), VOCABULARY, **options)


@settings(max_examples=100)
@given(texts)
def test_without_rules_texts_are_read_as_ever(plain, text):
    """The ids are those of the tokenizer alone, as in models from before there were rules."""
    ids = plain(text=[text])["input_ids"][0]
    assert ids == (plain.tokenizer(text)["input_ids"] or [0])
    tokens = build_word_tokenizer(VOCABULARY)(text)["input_ids"]
    assert [position for _, positions in plain.word_spans(text) for position in positions] == [
        position for position, token in enumerate(tokens) if token > 1
    ]


@pytest.fixture(scope="module")
def plain():
    return make()


@pytest.fixture(scope="module")
def ruled():
    return make(word_rules=ALL, unknown_words="similar")


def test_a_processor_reads_by_its_rules(plain, ruled):
    text = "สุนัขวิ่ง boats كِتَابٌ seaboat xyzzy"
    assert plain.known_words(text) == []
    assert ruled(text=[text, "海"], return_tensors="pt")["input_ids"].tolist() == [
        [4, 5, 2, 7, 3, 2, 1],
        [6, 0, 0, 0, 0, 0, 0],
    ]
    assert ruled.word_spans(text) == [
        ("สุนัข", [0]), ("วิ่ง", [1]), ("boats", [2]), ("كتاب", [3]), ("seaboat", [4, 5]),
    ]  # fmt: skip
    assert dict(ruled.readings(text)) == {
        **{word: [word] for word in ("สุนัข", "วิ่ง", "كتاب")}, "boats": ["boat"], "seaboat": ["sea", "boat"], "xyzzy": [],
    }  # fmt: skip


def test_rules_are_saved_and_files_without_rules_are_as_before(plain, ruled, tmp_path, no_icu):
    plain.save_pretrained(tmp_path / "plain")
    content = json.loads((tmp_path / "plain" / "processor_config.json").read_text())
    assert not {"word_rules", "unknown_words"} & content.keys()
    assert not CMFAHProcessor.from_pretrained(tmp_path / "plain")._prepares_texts
    ruled.save_pretrained(tmp_path / "ruled")
    with pytest.raises(ModelFileError, match=r"processor_config.json: .*pip install icu4py") as caught:
        CMFAHProcessor.from_pretrained(tmp_path / "ruled")
    assert "\n" not in str(caught.value)


def test_a_loaded_processor_reads_as_the_saved_one(ruled, tmp_path):
    ruled.save_pretrained(tmp_path)
    loaded = CMFAHProcessor.from_pretrained(tmp_path)
    assert (loaded.word_rules, loaded.unknown_words) == (ALL, "similar")
    text = "สุนัขวิ่ง boats"
    assert loaded(text=text)["input_ids"] == ruled(text=text)["input_ids"]
    assert CMFAHProcessor.from_pretrained(tmp_path, unknown_words="ignore").known_words("boats") == []
    path = tmp_path / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"unknown_words": "guess"}))
    with pytest.raises(ModelFileError, match="unknown_words is 'guess'"):
        CMFAHProcessor.from_pretrained(tmp_path)
