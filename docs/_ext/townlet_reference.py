"""Pages that are made from the code: every setting from `Config`'s fields, every command from its parser.

`{townlet-settings}` writes an entry `townlet.Config.<setting>` for each field, with its type, its default and its
meaning. `{townlet-commands}` writes the options of each command. `{townlet-names} MODULE` writes an entry for each name
in `MODULE.__all__`, or for each public function where there is none; `{townlet-types} NAME ...` for classes that the
public ones take and return, wherever in the package they live. None of them can fall behind the code.

The rest serves the docstrings. Each name in a class's section `Attributes:` is an entry with the text there, so that
the search finds it and its shape. An annotation that names a class of the package by any module leads to the entry of
that class.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

import townlet
from townlet.cli import build_parser


class Written(SphinxDirective):
    """A directive that writes its content: sections of a heading, which may be empty, and reStructuredText."""

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        """The nodes of what `sections` wrote. The pages are Markdown, so the rest stands in a block of its own."""
        text = ""
        for heading, lines in self.sections():
            text += f"## {heading}\n\n" if heading else ""
            text += "\n".join(["````{eval-rst}", *lines, "````", "", ""])
        return self.parse_text_to_nodes(text, allow_section_headings=True)


# ---- settings -------------------------------------------------------------------------------------------------------


def settings() -> Iterator[tuple[str, list[Field[Any]]]]:
    """The headings of `townlet train --help`, each with the fields of `Config` below it."""
    groups = sys.modules[townlet.Config.__module__].GROUPS
    found: list[tuple[str, list[Field[Any]]]] = []
    for field in fields(townlet.Config):
        if field.name in groups:
            found.append((groups[field.name], []))
        found[-1][1].append(field)
    yield from found


def shown_default(field: Field[Any]) -> str:
    """A field's default as Python writes it."""
    return repr(field.default_factory() if field.default_factory is not MISSING else field.default)


class Settings(Written):
    """`{townlet-settings}`: one entry for each setting."""

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        for group, members in settings():
            yield group.capitalize(), [line for field in members for line in self.entry(field)]

    @staticmethod
    def entry(field: Field[Any]) -> Iterator[str]:
        yield f".. py:attribute:: townlet.Config.{field.name}"
        yield f"   :type: {field.type}"
        yield f"   :value: {shown_default(field)}"
        yield ""
        yield f"   {escaped(sentence(field.metadata['meaning']))}"
        yield ""
        words = field.metadata["range"].words
        yield f"   Flag: ``--{field.name.replace('_', '-')}``." + f" Range: {words}." * bool(words)
        yield ""


def sentence(text: str) -> str:
    """`text` with a full stop behind it."""
    return text.rstrip(".") + "."


def escaped(text: str) -> str:
    """`text` for reStructuredText, with nothing in it read as markup but code in backticks."""
    return re.sub(r"([\\*|]|_(?=\W|$))", r"\\\1", text)


# ---- commands -------------------------------------------------------------------------------------------------------


def commands() -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Command -> (what it is for in a line, its parser), in the order of `townlet --help`."""
    (choices,) = [a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction)]
    about = {action.dest: action.help or "" for action in choices._choices_actions}
    return {name: (about[name], parser) for name, parser in choices.choices.items()}


class Commands(Written):
    """`{townlet-commands}`: one section for each command."""

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        for name, (about, parser) in commands().items():
            yield f"townlet {name}", list(self.command(name, about, parser))

    def command(self, name: str, about: str, parser: argparse.ArgumentParser) -> Iterator[str]:
        text = parser.description or about
        yield from (escaped(sentence(text[0].upper() + text[1:])), "", f".. program:: townlet {name}", "")
        for group in parser._action_groups:
            actions = [a for a in group._group_actions if a.help != argparse.SUPPRESS]
            if not actions:
                continue
            if group.title not in ("positional arguments", "options"):
                yield from (".. rubric:: " + str(group.title)[0].upper() + str(group.title)[1:], "")
            for action in actions:
                yield from self.option(parser, action)
        if parser.epilog:
            yield from (escaped(" ".join(parser.epilog.split())), "")

    @staticmethod
    def option(parser: argparse.ArgumentParser, action: argparse.Action) -> Iterator[str]:
        formatter = parser._get_formatter()
        arguments = (
            ""
            if action.nargs == 0
            else formatter._format_args(action, formatter._get_default_metavar_for_optional(action))
        )
        if action.option_strings:
            signature = ", ".join(f"{flag} {arguments}".strip() for flag in action.option_strings)
        else:
            signature = formatter._format_args(action, formatter._get_default_metavar_for_positional(action))
        help_text = formatter._expand_help(action) if action.help else ""
        yield from (f".. option:: {signature}", "")
        yield from (f"   {escaped(sentence(' '.join(help_text.split())))}" if help_text else "", "")


# ---- public names ---------------------------------------------------------------------------------------------------


def public_names(module: str) -> list[str]:
    """`__all__` of a module; where it has none, its own public functions and classes in the order of the source."""
    home = importlib.import_module(module)
    if hasattr(home, "__all__"):
        return list(home.__all__)
    own = {
        name: value
        for name, value in vars(home).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module
    }
    return sorted(own, key=lambda name: inspect.getsourcelines(own[name])[1])


class Names(Written):
    """`{townlet-names} MODULE [NAME ...]`: one entry for each public name of a module, or for those given."""

    required_arguments = 1
    final_argument_whitespace = True

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        module, *names = self.arguments[0].split()
        yield "", list(self.entries(module, names))

    @staticmethod
    def entries(module: str, names: list[str]) -> Iterator[str]:
        for name in names or public_names(module):
            value = getattr(importlib.import_module(module), name)
            if name == "Config":
                continue  # on the page of the settings
            if inspect.isclass(value):
                yield from (f".. autoclass:: {module}.{name}", "   :members:", "   :undoc-members:")
                yield from (f"   :exclude-members: {', '.join(attributes(value))}", "")
            elif inspect.isroutine(value):
                yield from (f".. autofunction:: {module}.{name}", "")
            else:
                yield from (f".. autodata:: {module}.{name}", "   :no-value:", "")


class Types(Names):
    """`{townlet-types} NAME ...`: one entry for each of the package's classes with these names."""

    def sections(self) -> Iterator[tuple[str, list[str]]]:
        for name in self.arguments[0].split():
            if not (found := classes_called(name)):
                raise self.error(f"{name} is no class of the package")
            for home in found:
                yield "", list(self.entries(home.__module__, [name]))


def classes_called(name: str) -> list[type]:
    """The package's own classes with this name."""
    modules = [module for path, module in sorted(sys.modules.items()) if path.partition(".")[0] == "townlet"]
    found = (vars(module).get(name) for module in modules)
    return list(dict.fromkeys(v for v in found if inspect.isclass(v) and v.__module__.partition(".")[0] == "townlet"))


# ---- docstrings -----------------------------------------------------------------------------------------------------

COLON = "\N{MODIFIER LETTER COLON}"


def before_napoleon(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keep texts with colons from being read as `type: meaning`: of properties, and of what is returned."""
    if what in ("property", "attribute") and lines:
        lines[0] = lines[0].replace(":", COLON)
    start, end = section(lines, "Returns:")
    lines[start:end] = [line.replace(":", COLON) for line in lines[start:end]]


def section(lines: list[str], heading: str) -> tuple[int, int]:
    """The first line below the heading of a docstring's section, and the line behind its last one."""
    start = lines.index(heading) + 1 if heading in lines else len(lines)
    end = start
    while end < len(lines) and (not lines[end] or lines[end].startswith("    ")):
        end += 1
    return start, end


def attributes(cls: type) -> list[str]:
    """The names in the section `Attributes:` of a class, which become entries of their own with the text there."""
    lines = (inspect.getdoc(cls) or "").split("\n")
    start, end = section(lines, "Attributes:")
    return [found[1] for line in lines[start:end] if (found := re.match(r"    (\w+): ", line))]


def mend_docstring(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keep absolute values from being markup."""
    lines[:] = [line if line.startswith("    ") else without_bars(line).replace(COLON, ":") for line in lines]


def without_bars(line: str) -> str:
    """|x| is an absolute value here, never a substitution."""
    parts = re.split(r"(`+[^`]*`+)", line)
    return "".join(part if part.startswith("`") else re.sub(r"(?<!\\)\|", r"\|", part) for part in parts)


def by_last_name(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element) -> nodes.Node | None:
    """An annotation that names a class of the package by any module leads to the class's entry, where it has one.

    The classes without an entry are internal: their names stand there as plain text.
    """
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target:
        return None
    domain, last = env.domains.python_domain, target.rpartition(".")[2]
    entries = [n for n, entry in domain.objects.items() if n.rpartition(".")[2] == last and not entry.aliased]
    if len(entries) == 1:
        return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", entries[0], node, content)
    return content if classes_called(last) else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.add_directive("townlet-settings", Settings)
    app.add_directive("townlet-commands", Commands)
    app.add_directive("townlet-names", Names)
    app.add_directive("townlet-types", Types)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)  # napoleon has 500
    app.connect("autodoc-process-docstring", mend_docstring, priority=600)
    app.connect("missing-reference", by_last_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
