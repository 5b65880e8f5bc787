"""Settings: flags > ``KVTOOL_*`` > ``kvtool.toml`` or ``[tool.kvtool]`` > the user's file > defaults."""

from __future__ import annotations

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    PyprojectTomlConfigSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from kvtool.errors import UsageError


def user_file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "kvtool" / "kvtool.toml"


class Settings(BaseSettings):
    """What every command may be told once instead of each time."""

    model_config = SettingsConfigDict(
        env_prefix="KVTOOL_",
        env_ignore_empty=True,
        extra="forbid",
        pyproject_toml_table_header=("tool", "kvtool"),
        protected_namespaces=(),
    )

    store: Path = Path("kv-store")
    model: str = "embedded"
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    load_in: Literal["4bit", "8bit"] | None = None
    adapter: Path | None = None
    system: str | None = None
    prefix_file: Path | None = None
    no_prefix: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    segment_tokens: int | None = None
    step_tokens: int = 1024
    pack_tokens: int = 512
    neighbours: int = 0

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
            env_settings,
            TomlConfigSettingsSource(settings_cls, Path("kvtool.toml")),
            PyprojectTomlConfigSettingsSource(settings_cls),
            TomlConfigSettingsSource(settings_cls, user_file()),
        )


def settings(**flags: Any) -> Settings:
    """The settings, with the ``flags`` that were given on top. Raises ``UsageError``, naming the field."""
    try:
        return Settings(**{name: value for name, value in flags.items() if value not in (None, [])})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(field, Settings.model_fields, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are: {', '.join(Settings.model_fields)}"
            raise UsageError(_file_with(field), f"unknown setting {field}", remedy) from error
        raise UsageError(
            f"setting {field} is {first.get('input')!r}",
            first["msg"].lower(),
            (
                f"see the flag --{field.replace('_', '-')}, KVTOOL_{field.upper()}, kvtool.toml, "
                f"[tool.kvtool] in pyproject.toml and {user_file()}"
            ),
        ) from error
    except SettingsError as error:
        raise UsageError(error, 'expected JSON for a list in KVTOOL_*, such as ["*.md"]') from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"kvtool.toml, pyproject.toml or {user_file()}", f"is not TOML ({error})") from error


def _file_with(field: str) -> Path:
    for path in (Path("kvtool.toml"), user_file()):
        if path.is_file() and field in tomllib.loads(path.read_text()):
            return path
    return Path("pyproject.toml")
