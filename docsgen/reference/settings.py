"""The settings model, field by field."""

from __future__ import annotations

import typing

import typer.main

from docsgen.markdown import code, table
from docsgen.markdown import page as whole_page
from kvtool.cli import app
from kvtool.config import Settings

INTRO = """What every command can be told once instead of each time. Each setting has a flag of the same name, and a
variable in the environment. The first place that names it wins:

1. the flag,
2. the variable,
3. `kvtool.toml` in the working directory,
4. the table `[tool.kvtool]` of `pyproject.toml` there,
5. `kvtool/kvtool.toml` in the user's configuration directory (`$XDG_CONFIG_HOME`, or `~/.config`),
6. the default.

`system`, `prefix_file` and `no_prefix` exclude each other: the first place that names one of them decides.

In the environment a list is JSON: `KVTOOL_INCLUDE='["*.md"]'`. In TOML it is a TOML list. A name that is not in this table
is refused, with the nearest one that is; so is a variable `KVTOOL_…` that is not on this page."""

OTHERS = """## Other variables

These are read where they are needed and cannot stand in a file:"""

VARIABLES = {
    "KVTOOL_CACHE_DIR": "Where kvtool keeps what it can make or fetch again: converted models, copies of remote artifacts, "
    "measurements. Default: `kvtool` in `$XDG_CACHE_HOME`, or in `~/.cache`.",
    "KVTOOL_TOKEN": "The bearer token that is sent to a server whose store is read.",
    "KVTOOL_SIGNING_KEY": "The Ed25519 key to sign documents with: its file, or the PEM itself.",
    "KVTOOL_SIGNED_BY": "Public keys, one of which must have signed every document that is used: their files, separated as in "
    "`PATH`, or the PEM itself.",
    "KVTOOL_ENCRYPTION_KEY": "The keys of encrypted stores: their files, separated as in `PATH`, or one key's 64 hexadecimal "
    "digits.",
}


def page() -> str:
    rows = [
        (
            code(name),
            code(kind(field.annotation)),
            code(shown(field.default)),
            code(f"KVTOOL_{name.upper()}"),
            about(name),
        )
        for name, field in Settings.model_fields.items()
    ]
    others = [(code(name), meaning) for name, meaning in VARIABLES.items()]
    return whole_page(
        "Settings",
        "kvtool/config.py",
        INTRO,
        table(("setting", "type", "default", "variable", "meaning"), rows),
        OTHERS,
        table(("variable", "meaning"), others),
    )


def kind(annotation: object) -> str:
    """A type as TOML's reader would call it."""
    options = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return ", ".join(map(str, options))
    if typing.get_origin(annotation) is tuple:
        return f"list of {kind(options[0])}"
    if options:
        return " or ".join(kind(option) for option in options if option is not type(None))
    return {"str": "text", "int": "number", "bool": "true or false", "Path": "path"}.get(  # type: ignore[return-value]
        annotation.__name__, annotation.__name__
    )


def shown(default: object) -> str:
    if isinstance(default, bool):
        return str(default).lower()
    return "none" if default in (None, ()) else str(default)


def about(name: str) -> str:
    """The field's description, or else the help of the flag of that name."""
    if described := Settings.model_fields[name].description:
        return described
    for command in typer.main.get_command(app).commands.values():
        for parameter in command.params:
            if parameter.name == name:
                return parameter.help  # type: ignore[no-any-return]
    raise LookupError(f"no command has the setting {name}, and its field has no description")
