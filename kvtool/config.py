"""Settings of commands, from flags, environment and files.

The first that sets a field decides: a flag, ``KVTOOL_*`` in the environment, ``kvtool.toml``, ``[tool.kvtool]`` in
``pyproject.toml`` (both in the working directory), the user's file, the default.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from kvtool.errors import UsageError


def user_file() -> Path:
    """The user's ``kvtool.toml``, for all directories."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kvtool" / "kvtool.toml"


OTHER_VARIABLES = (
    "KVTOOL_CACHE_DIR",
    "KVTOOL_TOKEN",
    "KVTOOL_SIGNING_KEY",
    "KVTOOL_SIGNED_BY",
    "KVTOOL_ENCRYPTION_KEY",
)
"""Variables that are read where they are needed."""

BUILD = "build"
"""The table that is no setting: ``kvtool.pipeline.project`` reads it."""

PREFIX = ("system", "prefix_file", "no_prefix")
"""Settings of which one counts: that of the strongest source that has any."""


class _OnePrefix(PydanticBaseSettingsSource):
    """A source without its prefix where a stronger one has chosen another."""

    def __call__(self) -> dict[str, Any]:
        values = super().__call__()  # type: ignore[safe-super]
        stronger = {name: value for name, value in self.current_state.items() if name in PREFIX}
        if stronger and not (stronger.keys() == {"no_prefix"} and _is_no(stronger["no_prefix"])):
            return {name: value for name, value in values.items() if name not in PREFIX}
        return values


class _Environment(_OnePrefix, EnvSettingsSource):
    pass


class _Toml(_OnePrefix, TomlConfigSettingsSource):
    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        return _without_build(read_toml(file_path))


class _Pyproject(_OnePrefix, PyprojectTomlConfigSettingsSource):
    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        values = read_toml(file_path)
        tool = values.get("tool", {})
        return {"tool": {"kvtool": _without_build(tool.get("kvtool", {}))}}


def _without_build(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != BUILD}


def read_toml(path: Path | Traversable) -> dict[str, Any]:
    """The file's values, after the byte order mark that Windows' editors write. Raises ``UsageError`` for what is not TOML."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(path, f"is not TOML ({error})") from error
    except OSError as error:
        raise UsageError(path, f"cannot be read ({error.strerror})", "check its permissions") from error


def _is_no(value: object) -> bool:
    """Whether ``no_prefix`` is turned off, in the words that pydantic takes for that."""
    return str(value).lower() in ("false", "0", "no", "off", "f", "n")


class Settings(BaseSettings):
    """Values of flags of several commands, or of ``kvtool prefill``, that can be set once for all calls.

    A field's description is that of its flag.
    """

    model_config = SettingsConfigDict(
        env_prefix="KVTOOL_",
        env_ignore_empty=True,
        extra="forbid",
        pyproject_toml_table_header=("tool", "kvtool"),
        protected_namespaces=(),
    )

    store: Path = Field(
        Path("kv-store"),
        description="Use the store in this directory or, to read only, at a server's http://HOST:PORT or a bucket's "
        "s3://BUCKET/PREFIX.",
    )
    model: str = Field(
        "embedded", description="Use this model: a directory, a .gguf file or a hub id, owner/name@revision."
    )
    device: str = Field("auto", description="Run on this device: auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Compute in this dtype: auto, float32, bfloat16 or float16."
    )
    load_in: Literal["4bit", "8bit"] | None = Field(
        None, description="Load the weights in 4bit or 8bit, through bitsandbytes."
    )
    adapter: Path | None = Field(None, description="Apply the PEFT adapter in this directory.")
    system: str | None = Field(
        None, description="Put this system prompt before each document, through the chat template."
    )
    prefix_file: Path | None = Field(
        None, description="Put this file's text before each document, instead of the chat template."
    )
    no_prefix: bool = Field(False, description="Put nothing before each document.")
    include: tuple[str, ...] = Field(
        (), description="Take only documents whose names match, as in .gitignore."
    )
    exclude: tuple[str, ...] = Field(
        (), description="Leave out documents whose names match, as in .gitignore."
    )
    encoding: str | None = Field(
        None,
        description="Read text and HTML files in this encoding, such as cp1250.",
    )
    segment_tokens: int | None = Field(
        None, description="Split documents into segments of at most this many tokens."
    )
    step_tokens: int = Field(1024, description="Prefill a long document in passes of this many tokens.")
    pack_tokens: int = Field(
        512, description="Prefill short documents together, in passes of up to this many tokens."
    )
    neighbours: int = Field(
        0,
        description="Prefill each document after this many others too, and store the mean as variant averaged, for "
        "blending; 4 works well.",
    )
    collect: tuple[str, ...] = Field(
        (),
        description="Measure what these recipes need beside keys and values, so that compress runs no model.",
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (
            init_settings,
            _Environment(settings_cls),
            _Toml(settings_cls, Path("kvtool.toml")),
            _Pyproject(settings_cls),
            _Toml(settings_cls, user_file()),
        )


def settings(**flags: Any) -> Settings:
    """Reads the settings. ``flags`` that are None or empty count as not given.

    Raises ``UsageError``, naming the field and where it can be set, for an unknown one and for a value of the wrong kind;
    for a file that is not TOML.
    """
    _refuse_unknown_variables()
    try:
        return Settings(**{name: value for name, value in flags.items() if value not in (None, [])})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            remedy = near_name(field, Settings.model_fields)
            raise UsageError(_file_with(field), f"unknown setting {field}", remedy) from error
        remedy = (
            f"see the flag --{field.replace('_', '-')}, KVTOOL_{field.upper()}, kvtool.toml, "
            f"[tool.kvtool] in pyproject.toml and {user_file()}"
        )
        subject = f"setting {field} is {first.get('input')!r}"
        raise UsageError(subject, first["msg"].lower(), remedy) from error
    except SettingsError as error:
        raise UsageError(error, 'expected JSON for a list in KVTOOL_*, such as ["*.md"]') from error


def near_name(name: str, known: Iterable[str], advice: str = "") -> str:
    """The remedy for an unknown name: the known one that is near, or else all of them, after ``advice``."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {near[0]}?" if near else f"{advice}known are {', '.join(names)}"


def _refuse_unknown_variables() -> None:
    """Raises ``UsageError`` for a variable that looks like one of kvtool's and is none, such as KVTOOL_MODLE."""
    known = [*OTHER_VARIABLES, *(f"KVTOOL_{name.upper()}" for name in Settings.model_fields)]
    for name in sorted(os.environ):
        # Kubernetes sets KVTOOL_SERVICE_HOST, KVTOOL_PORT and more beside a service called kvtool.
        if re.match(r"KVTOOL_(?!(SERVICE|PORT)(_|$))", name.upper()) and name.upper() not in known:
            remedy = near_name(name.upper(), known, "unset it; ")
            raise UsageError(name, "unknown variable in the environment", remedy)


def _file_with(field: str) -> Path:
    """The file that sets ``field``."""
    for path in (Path("kvtool.toml"), user_file()):
        if path.is_file() and field in read_toml(path):
            return path
    return Path("pyproject.toml")
