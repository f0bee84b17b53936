"""MkDocs hook: makes the pages that follow from the code, and copies those that lie beside it.

The generated pages are the table of files (from the module docstrings), the command line (from the typer app) and the
settings of the methods (from their dataclasses).
The copied pages are the model cards, the bank format, the benchmarks and the changelog. A page in `docs/` may link to
the original file of a copied page; the link is rewritten to the page of the site, so it works in both places.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import posixpath
import re
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "remanence"
LINK = re.compile(r"\]\((?!https?://|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
INTRO_FILES = """# Files of the code

One line for each module: the first sentence of its docstring. This page is generated from the source.
"""
INTRO_METHODS = """# Methods and settings

`--method NAME` or `--method NAME:PRESET`. Without a preset, a method takes the settings that come with the model
(`remanence.json` in its folder), or those of its first preset if there are none. Every setting is a field of a frozen
dataclass; the table shows the defaults. This page is generated from the code.
"""
INTRO_CLI = """# Command line

Every command with its arguments and options. This page is generated from the program; `remanence COMMAND --help`
shows the same text.

`--bank`, `--namespace`, `--model`, `--method`, `--seed` and `--json` mean the same everywhere. `--json` prints exactly
one object. Progress bars show on a terminal only. Bad input (a missing file, a damaged bank, a question longer than the
context) causes one line: what is wrong, and what to do.
"""


def copied(root: Path = ROOT) -> dict[str, str]:
    """File of the repository -> page or picture of the site."""
    pages = {
        "CHANGELOG.md": "reference/changelog.md",
        "benchmarks/README.md": "reference/benchmarks.md",
        "src/remanence/bank/FORMAT.md": "reference/bank-format.md",
    }
    for path in sorted((root / "src/remanence/assets").glob("*/*")):
        name = {"README.md": "index.md"}.get(path.name, path.name)
        if path.name == "README.md" or path.suffix == ".png":
            pages[path.relative_to(root).as_posix()] = f"reference/models/{path.parent.name}/{name}"
    return pages


GENERATED = ("reference/command-line.md", "reference/files.md", "reference/methods.md")


def generated() -> dict[str, str]:
    """Page of the site -> its Markdown, for the pages that are made from the code."""
    return dict(zip(GENERATED, (command_line_page(), files_page(), methods_page()), strict=True))


# -- the table of files --------------------------------------------------------------------------------------------


def sentence(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def modules(source: Path = SOURCE) -> dict[str, dict[str, str]]:
    """Folder -> file name -> sentence. Empty files, as many `__init__.py` are, are left out."""
    folders: dict[str, dict[str, str]] = {}
    for path in sorted(source.rglob("*.py")):
        if path.read_text(encoding="utf-8").strip():
            folder = path.parent.relative_to(source.parent).as_posix()
            folders.setdefault(folder, {})[path.name] = sentence(path)
    return folders


def files_page(source: Path = SOURCE) -> str:
    parts = [INTRO_FILES]
    for folder, found in modules(source).items():
        rows = (f"| `{name}` | {cell(text)} |" for name, text in found.items())
        parts.append("\n".join([f"## `{folder}/`", "", "| file | |", "|---|---|", *rows]) + "\n")
    return "\n".join(parts)


# -- the methods ---------------------------------------------------------------------------------------------------


def methods_page() -> str:
    from remanence import methods

    found = {name: cls for name, cls in methods.known().items() if cls.__module__.startswith("remanence.")}
    return "\n".join([INTRO_METHODS, *(method_section(name, cls) for name, cls in sorted(found.items()))])


def method_section(name: str, cls: Any) -> str:
    config = getattr(sys.modules[cls.__module__], inspect.get_annotations(cls)["config"])
    presets = ", ".join(f"`{name}:{preset}`" for preset in cls.presets)
    rows = (f"| `{field.name}` | {setting(field)} |" for field in dataclasses.fields(config))
    about = [inspect.cleandoc(each.__doc__ or "") for each in (cls, config)]
    parts = [f"## `{name}`", about[0], f"Presets: {presets}.", about[1], "| setting | default |\n|---|---|"]
    return "\n\n".join(parts) + "\n" + "\n".join(rows) + "\n"


def setting(field: dataclasses.Field[Any]) -> str:
    return "set by the preset" if field.default is dataclasses.MISSING else code(repr(field.default))


# -- the command line ----------------------------------------------------------------------------------------------


def commands(command: Any, path: str = "remanence") -> list[tuple[str, Any]]:
    """Every command and group below `command`, with the words that call it."""
    found = [(path, command)]
    for name, below in getattr(command, "commands", {}).items():
        found += commands(below, f"{path} {name}")
    return found


def command_line_page() -> str:
    import typer

    from remanence.cli.app import EPILOG, build

    parts = [INTRO_CLI, EPILOG + "\n"]
    for path, command in commands(typer.main.get_command(build())):
        parts.append(command_section(path, command))
    return "\n".join(parts)


def command_section(path: str, command: Any) -> str:
    parts = [f"{'##' if path.count(' ') < 2 else '###'} `{path}`", "", (command.help or "").strip(), ""]
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option" and not param.hidden]
    options = [param for param in options if "--help" not in param.opts]
    if arguments:
        rows = (f"| {code(metavar(param))} | {cell(param.help or '')} | {default(param)} |" for param in arguments)
        parts += ["| argument | | default |", "|---|---|---|", *rows, ""]
    if options:
        rows = (f"| {names(param)} | {cell(param.help or '')} | {default(param)} |" for param in options)
        parts += ["| option | | default |", "|---|---|---|", *rows, ""]
    if below := getattr(command, "commands", None):
        parts += ["Commands: " + ", ".join(f"`{name}`" for name in below) + ".", ""]
    return "\n".join(parts)


def names(param: Any) -> str:
    value = "" if param.is_flag else f" {metavar(param)}"
    return ", ".join(code(name + value) for name in sorted(param.opts, key=len, reverse=True))


def metavar(param: Any) -> str:
    if param.metavar:
        return param.metavar
    annotation = getattr(getattr(param, "type_descriptor", None), "annotation", None)
    choices = getattr(getattr(param, "type", None), "choices", None) or (
        get_args(annotation) if get_origin(annotation) is Literal else None
    )
    return "|".join(map(str, choices)) if choices else param.name.upper()


def default(param: Any) -> str:
    if param.required:
        return "required"
    value = param.default
    return (
        "" if value is None or value is False or callable(value) or str(value) in ("", "[]", "()") else code(str(value))
    )


def code(text: str) -> str:
    return cell(f"`{text}`")


def cell(text: str) -> str:
    """Text as it may stand in a cell of a table; a bar in code needs no backslash."""
    parts = " ".join(text.split()).split("`")
    return "`".join(part if i % 2 else part.replace("|", "\\|") for i, part in enumerate(parts))


# -- links between pages and files that lie elsewhere --------------------------------------------------------------


def relinked(markdown: str, page: str, root: Path = ROOT) -> str:
    """`markdown` of a page of the site, its links to copied files turned into links to their pages."""
    pages = copied(root)
    origin = {site: file for file, site in pages.items()}.get(page, f"docs/{page}")

    def replace(match: re.Match[str]) -> str:
        file = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[1]))
        target = pages.get(file) or (file.removeprefix("docs/") if file.startswith("docs/") else None)
        if target is None:
            return match[0]  # strict mode reports it
        return f"]({posixpath.relpath(target, posixpath.dirname(page) or '.')}{match[2] or ''})"

    return LINK.sub(replace, markdown)


# -- what MkDocs calls ---------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    from mkdocs.structure.files import File

    for page, text in generated().items():
        files.append(File.generated(config, page, content=text))
    for file, page in copied().items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    return relinked(markdown, page.file.src_uri)
