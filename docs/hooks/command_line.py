"""Makes the page `command-line.md` from the commands themselves, so that it cannot go stale."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGE = "command-line.md"
KINDS = {"Path": "PATH", "int": "N", "float": "NUMBER"}


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the page."""
    files.append(File.generated(config, PAGE, content=command_line_page()))
    return files


def command_line_page() -> str:
    """Returns Markdown with each command's purpose, arguments and options."""
    sys.path.insert(0, str(ROOT / "ReplicaDetection"))
    import typer

    from replica_detection.cli import app

    group = typer.main.get_command(app)
    commands = {name: command for name, command in group.commands.items() if not command.hidden}
    lines = ["# Command line", "", _text(group.help), "", "| command | |", "|---|---|"]
    lines += [f"| [`{name}`](#{name}) | {_first_sentence(command.help)} |" for name, command in commands.items()]
    for name, command in commands.items():
        lines += ["", f"## {name} {{#{name}}}", "", *_usage(name, command), ""]
        lines += [_text(command.help), "", *_table(command)]
    return "\n".join(lines) + "\n"


def _usage(name: str, command: Any) -> list[str]:
    kinds = _kinds(command)
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = [_argument(p) for p in arguments] + [
        f"{max(p.opts, key=len)} {kinds[p.name]}" for p in command.params if p.required and p not in arguments
    ]
    return ["```", " ".join(["replica-detection", name, *words, "[OPTIONS]"]), "```"]


def _table(command: Any) -> list[str]:
    rows, kinds = [], _kinds(command)
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            what = f"`{_argument(parameter)}`"
        else:
            what = ", ".join(f"`{option}`" for option in [*parameter.opts, *parameter.secondary_opts])
            what += "" if _is_switch(parameter) else f" `{kinds[parameter.name]}`"
        rows.append(f"| {what} | {_cell(parameter.help)} | {_default(parameter)} |")
    return ["| argument or option | meaning | default |", "|---|---|---|", *rows]


def _argument(parameter: Any) -> str:
    word = parameter.name.upper() + ("..." if parameter.nargs == -1 else "")
    return word if parameter.required else f"[{word}]"


def _is_switch(parameter: Any) -> bool:
    return bool(getattr(parameter, "is_flag", False))


def _kinds(command: Any) -> dict[str, str]:
    """Returns the kind of value of each parameter, from the annotations of the function behind the command."""
    return {name: _kind(hint) for name, hint in typing.get_type_hints(command.callback).items()}


def _kind(hint: Any) -> str:
    for part in (hint, *typing.get_args(hint)):
        if isinstance(part, type) and part.__name__ in KINDS:
            return KINDS[part.__name__]
    return "TEXT"


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if not isinstance(value, (bool, int, float, str, Path)) or value == "":
        return ""
    if _is_switch(parameter):
        return f"`{parameter.opts[0]}`" if value and parameter.secondary_opts else ""
    return f"`{value}`"


def _first_sentence(text: str | None) -> str:
    return _cell(_text(text).split("\n\n")[0])


def _cell(text: str | None) -> str:
    escaped = re.sub(r"([|\[\]])", r"\\\1", " ".join(_text(text).split()))
    return re.sub(r"(?<![\w`-])(--[a-z][\w-]*)", r"`\1`", escaped)


def _text(text: str | None) -> str:
    """Returns help text as Markdown: indented lines become code, marks of the terminal's bold become Markdown's."""
    clean = inspect.cleandoc(text or "").replace("\b", "").replace("\f", "")
    clean = re.sub(r"\[/?bold\]", "**", clean)
    return re.sub(r"(?m)^Example: (.+)$", r"```\n\1\n```", clean)
