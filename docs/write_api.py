"""Writes docs/api/ from the docstrings of the public names: `python docs/write_api.py [FOLDER]`.

What is public is what `cmfah_hf` and its packages list in `__all__`, and the types of errors. griffe reads signatures
and docstrings without importing anything but those lists; what is here only says how they look as Markdown.
"""

import re
import sys
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
# Page by package: what stands below its title, and further modules whose names people call.
PAGES = {
    "models": ("The models, their configurations, their processor", ()),
    "methods": ("Methods: objectives, their settings, and models with an objective", ()),
    "data": ("Data: loading, looking at it, preparing it, putting it into splits", ()),
    "expansion": ("Expansion: further words for sparse texts", ()),
    "evaluation": (
        "Evaluation: figures, plots, attention",
        ("metrics", "plots", "attention", "pointing", "label_graph", "mteb"),
    ),
    "retrieval": ("Retrieval: codes, the index, the retriever", ("codes",)),
    "training": ("Training: arguments, trainer, runs", ("evaluate",)),
    "experiments": ("Experiments: grids of runs, their results, tables and plots", ("figures", "reference")),
    "hub": ("The Hub: models, data sets and Spaces in one commit each", ()),
    "serving": ("Serving: search over HTTP, and its client", ()),
    "space": ("The Space: the search page", ()),
    "errors": ("Errors: what a user can get wrong", ()),
}
_TAG = re.compile(r"`\[([a-z]+(?:-[a-z0-9]+)*)\]`|(?<![\w`\])])\[([a-z]+(?:-[a-z0-9]+)*)\](?=[\s.,;:)]|$)")
_HEADINGS = re.findall(r"^#+ (\[([a-z0-9-]+)\].*)$", (ROOT / "docs" / "method.md").read_text("utf-8"), re.MULTILINE)
ANCHORS = {tag: re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title, tag in _HEADINGS}


def public_names(area: str) -> list[tuple[str, str]]:
    """The public names of an area, each with the module that defines it, or that holds it if it is a constant."""
    modules = [f"cmfah_hf.{area}", *(f"cmfah_hf.{area}.{name}" for name in PAGES[area][1])]
    found = {}
    for name in modules:
        module = import_module(name)
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == name]
        listed = getattr(module, "__all__", [key for key in own if not key.startswith("_")])
        for key in listed:
            found.setdefault(key, getattr(getattr(module, key), "__module__", None) or name)
    return sorted(((key, home) for key, home in found.items()), key=lambda item: (item[0].isupper(), item[0].lower()))


def linked(text: str) -> str:
    """Tags of equations as links into the method; shell-like prompts and code stay as they are."""

    def link(match: re.Match[str]) -> str:
        tag = match[1] or match[2]
        return f"[`[{tag}]`](../method.md#{ANCHORS[tag]})" if tag in ANCHORS else match[0]

    return re.sub(r"docs/(\w+\.md)", r"[docs/\1](../\1)", _TAG.sub(link, text.strip()))


def signature(function: griffe.Function, name: str) -> str:
    """The call as Python code, a parameter a line where it is long."""
    parts, star = [], False
    for parameter in function.parameters:
        if parameter.name in ("self", "cls"):
            continue
        prefix = {"variadic positional": "*", "variadic keyword": "**"}.get(parameter.kind.value, "")
        star |= prefix == "*"
        if parameter.kind is griffe.ParameterKind.keyword_only and not star:
            parts.append("*")
            star = True
        kind = f": {parameter.annotation}" if parameter.annotation is not None else ""
        shown = parameter.default is not None and not prefix
        value = parameter.default
        if isinstance(value, griffe.ExprCall) and str(value.function) == "_argument":  # a default and its help text
            value = value.arguments[0]
        default = (f" = {value}" if kind else f"={value}") if shown else ""
        parts.append(f"{prefix}{parameter.name}{kind}{default}")
    ends = f" -> {function.returns}" if function.returns is not None and function.name != "__init__" else ""
    line = f"{name}({', '.join(parts)}){ends}"
    if len(line) <= 100:
        return line
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){ends}"


def items(title: str, rows: list[tuple[str, str]]) -> str:
    """A list of names with what is said of them, on lines of their own."""
    lines = [
        f"- {name}: {' '.join(linked(text).split())}" if name else f"- {' '.join(linked(text).split())}"
        for name, text in rows
    ]
    return f"**{title}**\n\n" + "\n".join(lines)


def described(thing: griffe.Object) -> list[str]:
    """The docstring, section by section."""
    parts = []
    for section in thing.docstring.parse("google", warnings=False) if thing.docstring else ():
        value, kind = section.value, section.kind.value
        if kind == "text":
            parts.append(fenced(linked(value)))
        elif kind in ("parameters", "attributes", "other parameters"):
            rows = [(f"`{each.name}`{told(each)}", each.description) for each in value]
            parts.append(items({"attributes": "Fields"}.get(kind, "Arguments"), rows))
        elif kind == "raises":
            parts.append(items("Raises", [(f"`{each.annotation}`", each.description) for each in value]))
        elif kind in ("returns", "yields"):
            parts.append(items(kind.capitalize(), [("", each.description) for each in value]))
        elif kind == "examples":
            parts += [fenced(text) if what.value == "text" else f"```python\n{text}\n```" for what, text in value]
        elif kind == "admonition":
            parts.append(fenced(f"**{value.kind.capitalize()}**\n\n{value.contents}"))
    return parts


def told(parameter: griffe.DocstringParameter) -> str:
    """What a docstring says of a parameter's type; what the signature says already is not said again."""
    written = str(parameter.annotation or "")
    return f" ({written})" if "`" in written or "optional" in written else ""


def fenced(text: str) -> str:
    """Examples at a Python prompt as blocks of code, where they are not yet."""
    if "```" in text or ">>> " not in text:
        return text
    return re.sub(
        r"((?:^(?:>>> |\.\.\. ).*\n?(?:^(?!>>> |\.\.\. )\S.*\n?)*)+)", r"```python\n\1\n```", text, flags=re.MULTILINE
    )


def entry(name: str, thing: griffe.Object) -> str:
    """A public name: its signature, its docstring, and its own methods and properties."""
    if thing.is_attribute:
        return "\n\n".join([f"## `{name}`", f"```python\n{name} = {thing.value}\n```", *described(thing)])
    where = f"`{thing.filepath.relative_to(ROOT).as_posix()}`"
    if thing.is_function:
        return "\n\n".join([f"## `{name}`", f"```python\n{signature(thing, name)}\n```", *described(thing), where])
    init = thing.members.get("__init__")
    bases = ", ".join(str(base) for base in thing.bases)
    head = signature(init, name) if init is not None else f"class {name}({bases})" if bases else f"class {name}"
    parts = [f"## `{name}`", f"```python\n{head}\n```", *described(thing), *helped(thing, name)]
    for key, member in thing.members.items():
        if member.is_alias or not member.docstring or (key.startswith("_") and key != "__call__"):
            continue
        if member.is_function:
            called = f"{name}.{key}" if key != "__call__" else "evaluator"
            decorated = "property" in member.labels
            code = f"{name}.{key}" if decorated else signature(member, called.replace("evaluator", name.lower()))
            parts += [f"### `{name}.{key}`", f"```python\n{code}\n```", *described(member)]
        elif member.is_attribute:
            kind = f": {member.annotation}" if member.annotation is not None else ""
            parts += [f"### `{name}.{key}`", f"```python\n{name}.{key}{kind}\n```", *described(member)]
    return "\n\n".join([*parts, where])


def helped(thing: griffe.Class, name: str) -> list[str]:
    """The help texts that a dataclass's own fields carry, which are those of the command line."""
    found = getattr(import_module(thing.module.path), name)
    own = [field for field in fields(found) if field.name in thing.members] if is_dataclass(found) else []
    rows = [(f"`{field.name}`", field.metadata["help"]) for field in own if "help" in field.metadata]
    return [items("Fields", rows)] if rows else []


def located(package: griffe.Module, home: str, name: str) -> griffe.Object:
    """Where a name is defined; a constant, which does not know that itself, is looked for below its package."""
    module = package[home.partition(".")[2]]
    if name in module.members and not module[name].is_alias:
        return module[name]
    return next(filter(None, (_below(child, name) for child in module.modules.values())))


def _below(module: griffe.Module, name: str) -> griffe.Object | None:
    if name in module.members and not module[name].is_alias:
        return module[name]
    return next(filter(None, (_below(child, name) for child in module.modules.values())), None)


def page(area: str, package: griffe.Module) -> str:
    """A page of the reference."""
    title = PAGES[area][0]
    names = public_names(area)
    module = package[area]
    above = import_module("cmfah_hf").__all__
    source = "docs/write_api.py"
    contents = "\n".join(
        f"- [`{name}`](#{name.lower()})" + (f", also `from cmfah_hf import {name}`" if name in above else "")
        for name, _ in names
    )
    entries = [entry(name, located(package, home, name)) for name, home in names]
    intro = linked(module.docstring.value) if module.docstring else ""
    written = f"Written from the docstrings of `cmfah_hf.{area}` by `{source}`; edit those, then `make docs`."
    return "\n\n".join([f"# {title}", intro, written, contents, *entries]) + "\n"


def write(folder: Path) -> list[Path]:
    """Writes every page, and an index of them; gives the files."""
    package = griffe.load("cmfah_hf", search_paths=[ROOT])
    folder.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(f"- [{title}]({area}.md): `cmfah_hf.{area}`" for area, (title, _) in PAGES.items())
    pages = {area: page(area, package) for area in PAGES}
    pages["README"] = f"# Reference\n\nEvery public name, from its docstring.\n\n{rows}\n"
    for area, text in pages.items():
        (folder / f"{area}.md").write_text(text, encoding="utf-8")
    return [folder / f"{area}.md" for area in pages]


if __name__ == "__main__":
    for path in write(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "api"):
        print(path)  # noqa: T201
