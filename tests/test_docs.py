"""The documentation against the code: equation tags, links, paths, functions, and the citation."""

import ast
import io
import re
import tokenize
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "cmfah_hf"
METHOD = ROOT / "docs" / "method.md"
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.is_file()]

# A tag is cited as `[tag]` in backticks, or bare between spaces and punctuation; code such as rows[name] is not a tag.
_TAG = re.compile(r"(?:`\[([a-z]+(?:-[a-z0-9]+)*)\]`|(?<![\w\"'\])=`])\[([a-z]+(?:-[a-z0-9]+)*)\](?=[\s.,;:)]|$))")
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
# Links to images and pages; a title after the address is ignored.
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^)\s]+)[^)]*\)")
_FILE_SPAN = re.compile(r"([\w./-]+\.py)(?::([\w.]+))?")


def cited_tags(text: str) -> set[str]:
    return {quoted or bare for quoted, bare in _TAG.findall(text)}


def prose_of(path: Path) -> str:
    """The docstrings, other strings and comments of a Python file, joined by newlines."""
    source = path.read_text(encoding="utf-8")
    strings = [
        node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant) and type(node.value) is str
    ]
    comments = [
        token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    ]
    return "\n".join(strings + comments)


def tags_of_headings(text: str) -> list[str]:
    return [match[1] for title in _HEADING.findall(text) if (match := re.match(r"\[([a-z0-9-]+)\]", title))]


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings: lower case, punctuation removed, spaces as hyphens."""
    titles = _HEADING.findall(_FENCE.sub("", text))
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@cache
def definitions(path: Path) -> set[str]:
    """The functions, classes and methods of a file, methods as `Class.method`."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return found


def broken_links(page: Path, text: str) -> list[str]:
    broken = []
    for address in _LINK.findall(_FENCE.sub("", text)):
        if re.match(r"[a-z]+:", address):
            continue
        target, _, anchor = address.partition("#")
        file = (page.parent / target) if target else page
        if not file.exists() or (anchor and anchor not in anchors(text if file == page else file.read_text("utf-8"))):
            broken.append(address)
    return broken


def broken_paths(text: str) -> list[str]:
    """Paths below the project's folders, Python files and their functions that a text names but do not exist."""
    own = re.compile(r"(cmfah|docs|hub_|tests)\w*$")
    tops = "|".join(sorted(path.name for path in ROOT.iterdir() if path.is_dir() and own.match(path.name)))
    broken = [
        path for path in re.findall(rf"(?<![\w./-])((?:{tops})/[\w./-]*[\w/])", text) if not (ROOT / path).exists()
    ]
    for span in re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)):
        match = _FILE_SPAN.fullmatch(span)
        # A bare name may be any file; with a folder or a function it refers to ours.
        if match and ("/" in match[1] or match[2]):
            file = next((below / match[1] for below in (ROOT, PACKAGE) if (below / match[1]).is_file()), None)
            if file is None or (match[2] and match[2] not in definitions(file)):
                broken.append(span)
    return broken


def test_tags_are_distinguished_from_code():
    text = (
        "See `[aqd]`, [intra] and ([label-guidance]). Not rows[name], ids[0][row], `[a in i]`, [PAD], =[image], [x](y)."
    )
    assert cited_tags(text) == {"aqd", "intra", "label-guidance"}


def test_every_cited_tag_has_an_equation_and_every_equation_is_cited():
    files = sorted(PACKAGE.rglob("*.py"))
    cited = {tag: path for path in files for tag in cited_tags(prose_of(path))}
    explained = tags_of_headings(METHOD.read_text(encoding="utf-8"))
    assert len(explained) == len(set(explained))
    unexplained = {tag: path.relative_to(ROOT).as_posix() for tag, path in cited.items() if tag not in explained}
    assert unexplained == {}
    assert set(explained) - set(cited) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_cite_only_tags_that_have_an_equation(page):
    text = re.sub(r"\$[^$\n]+\$", "", _FENCE.sub("", page.read_text(encoding="utf-8")))
    assert cited_tags(text) <= set(tags_of_headings(METHOD.read_text(encoding="utf-8")))


def test_each_equation_names_its_code():
    text = METHOD.read_text(encoding="utf-8")
    # Two equations of one function follow each other and name it once.
    for tag in set(tags_of_headings(text)) - {"attention-v"}:
        body = re.search(rf"^### \[{tag}\].*?(?=^##|\Z)", text, re.DOTALL | re.MULTILINE)[0]
        code = body[body.rindex("\nCode") :]
        assert any(_FILE_SPAN.fullmatch(span) for span in re.findall(r"`([^`]+)`", code)), tag


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_resolve(page):
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_the_index_lists_every_page_and_the_readme_every_task():
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    index, readme = (
        set(_LINK.findall(path.read_text(encoding="utf-8")))
        for path in (ROOT / "docs" / "README.md", ROOT / "README.md")
    )
    assert pages <= index
    assert {f"docs/{name}" for name in pages} <= readme
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_named_paths_and_functions_exist(page):
    assert broken_paths(page.read_text(encoding="utf-8")) == []


def test_a_broken_link_path_or_function_is_detected(tmp_path):
    page = tmp_path / "page.md"
    text = (
        "# One\n[a](gone.md) [b](#one) [c](#two) [[d]](#three) [e](https://x.y/z)\n"
        "`methods/losses.py:triplet_hinge` `methods/losses.py:gone` `models/gone.py` `cmfah_hf/gone.py`\n"
        "```\ncmfah train hub_configs/gone.yaml\n```\n"
    )
    page.write_text(text)
    assert broken_links(page, text) == ["gone.md", "#two", "#three"]
    assert broken_paths(text) == [
        "cmfah_hf/gone.py", "hub_configs/gone.yaml", "methods/losses.py:gone", "models/gone.py", "cmfah_hf/gone.py",
    ]  # fmt: skip


def test_defaults_of_the_method_page_match_the_code():
    from cmfah_hf.methods.cmfah import CMFAHObjectiveConfig
    from cmfah_hf.models.configuration_cmfah import CMFAHConfig
    from cmfah_hf.training.settings.arguments import CMFAHTrainingArguments, DataArguments

    config, objective, data = CMFAHConfig(), CMFAHObjectiveConfig(), DataArguments()
    training = {name: field.default for name, field in CMFAHTrainingArguments.__dataclass_fields__.items()}
    paper = ["intra_feature", "intra_hash", "quantization", "inter_feature", "inter_hash", "adversarial"]
    assert (config.backbone, config.word_dim, config.num_hidden_layers, objective.margin) == ("vgg19", 1000, 1, 0.5)
    assert {getattr(objective, f"{name}_weight") for name in paper} == {1.0}
    assert (config.image_temperature, config.text_temperature, config.attention) == (10, 10, "both")
    assert (config.hidden_size, config.hash_bits, config.num_concepts, config.initializer_range) == (512, 64, 64, 0.02)
    assert (list(config.text_kernel_sizes), config.text_filters) == ([1, 3, 5], 256)
    assert (objective.label_weight, objective.label_positive_weight, objective.paired_weight) == (1, 1, 1)
    assert (objective.similarity_weight, config.normalize_features, config.dropout) == (0, False, 0)
    assert config.normalize_regions
    assert config.use_lstm
    assert config.freeze_backbone
    assert (data.walk_length, data.top_k, data.min_probability, data.word_walks) == (5, 10, 0.01, 10)
    assert (data.knowledge, data.knowledge_top_k, data.knowledge_window, data.knowledge_min_pair_count) == (
        [],
        10,
        5,
        2,
    )
    assert (data.word_window, data.word_epochs, data.word_workers) == (5, 5, 1)
    assert (training["per_device_train_batch_size"], training["num_train_epochs"]) == (128, 150)
    assert (training["learning_rate"], training["discriminator_learning_rate"]) == (7e-4, 8e-4)
    assert (training["optim"], training["weight_decay"], training["max_grad_norm"]) == ("sgd", 0, 1)
    assert training["lr_scheduler_type"] == "linear"


def test_citation_matches_the_package():
    import cmfah_hf

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == cmfah_hf.__version__ == re.search(r'^version = "(.+)"', project, re.MULTILINE)[1]
    assert citation["license"] == re.search(r'^license = "(.+)"', project, re.MULTILINE)[1] == "Apache-2.0"
    assert {key for key in ("message", "title", "authors") if not citation.get(key)} == set()
    # The papers named on the method page are those to cite.
    cited = {reference["doi"]: reference for reference in citation["references"]}
    named = re.findall(r"https://doi\.org/([^)\s]+)", METHOD.read_text(encoding="utf-8"))
    text = re.sub(r"\s+", " ", METHOD.read_text(encoding="utf-8"))
    assert sorted(named) == sorted(cited)
    assert all(reference["title"] in text for reference in cited.values())


def test_license_is_the_full_text_of_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert [int(number) for number in re.findall(r"^ {3}(\d)\. [A-Z]", text, re.MULTILINE)] == list(range(1, 10))
    assert "END OF TERMS AND CONDITIONS" in text
