"""flags > environment > kvtool.toml > pyproject.toml > the user's file > defaults."""

from __future__ import annotations

from pathlib import Path
from typing import get_type_hints

import pytest

from docsgen.reference.settings import VARIABLES
from kvtool.commands.prefill import PrefillFlags
from kvtool.config import OTHER_VARIABLES, Settings, settings, user_file
from kvtool.errors import UsageError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    user_file().parent.mkdir(parents=True)


def test_defaults() -> None:
    assert settings() == Settings(store=Path("kv-store"), model="embedded", device="auto")


def test_what_is_nearer_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    user_file().write_text('model = "user"')
    assert settings().model == "user"
    Path("pyproject.toml").write_text('[project]\nname = "x"\n[tool.kvtool]\nmodel = "pyproject"')
    assert settings().model == "pyproject"
    Path("kvtool.toml").write_text('model = "toml"\ndevice = "cpu"')
    assert settings().model == "toml"
    monkeypatch.setenv("KVTOOL_MODEL", "env")
    assert settings().model == "env"
    assert settings(model="flag").model == "flag"
    assert settings(model=None).model == "env"
    assert settings(model="flag").device == "cpu"


PREFIXES = ("system", "prefix_file", "no_prefix")


@pytest.mark.parametrize("weaker", PREFIXES)
@pytest.mark.parametrize("stronger", PREFIXES)
@pytest.mark.parametrize("source", ["flag", "environment", "kvtool.toml"])
def test_the_prefix_of_the_strongest_source_counts(
    monkeypatch: pytest.MonkeyPatch, source: str, stronger: str, weaker: str
) -> None:
    toml = {"system": 'system = "no"', "prefix_file": 'prefix_file = "p"', "no_prefix": "no_prefix = true"}
    (user_file() if source == "kvtool.toml" else Path("kvtool.toml")).write_text(toml[weaker])
    flags = {}
    if source == "flag":
        flags = {stronger: {"system": "no", "prefix_file": Path("p"), "no_prefix": True}[stronger]}
    elif source == "environment":
        monkeypatch.setenv(f"KVTOOL_{stronger.upper()}", {"no_prefix": "true"}.get(stronger, "no"))
    else:
        Path("kvtool.toml").write_text(toml[stronger])
    chosen = settings(**flags)
    assert [name for name in PREFIXES if getattr(chosen, name)] == [stronger]


def test_a_prefix_that_is_not_turned_off_leaves_the_weaker_one(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("kvtool.toml").write_text('system = "Be brief."')
    monkeypatch.setenv("KVTOOL_NO_PREFIX", "False")
    assert settings().system == "Be brief."
    # Two of one source are left to exclude each other.
    Path("kvtool.toml").write_text('system = "Be brief."\nno_prefix = true')
    monkeypatch.delenv("KVTOOL_NO_PREFIX")
    assert (settings().system, settings().no_prefix) == ("Be brief.", True)


def test_every_kind_of_value_from_a_file() -> None:
    Path("kvtool.toml").write_text(
        'store = "s"\ninclude = ["*.md"]\nno_prefix = true\nsegment_tokens = 100\nload_in = "4bit"\nprefix_file = "p"'
    )
    chosen = settings(exclude=["x"])
    assert chosen.store == Path("s")
    assert chosen.include == ("*.md",)
    assert chosen.exclude == ("x",)
    assert chosen.no_prefix is True
    assert chosen.segment_tokens == 100
    assert chosen.load_in == "4bit"


def test_a_setting_and_its_flag_are_described_alike() -> None:
    flags = get_type_hints(PrefillFlags, include_extras=True)
    assert flags.keys() == Settings.model_fields.keys()
    for name, field in Settings.model_fields.items():
        (option,) = flags[name].__metadata__
        # The flag adds what is taken by default, or that it can be repeated.
        assert field.description
        assert option.help.startswith(field.description.removesuffix("."))


def test_lists_and_empty_values_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVTOOL_INCLUDE", '["*.md", "*.txt"]')
    monkeypatch.setenv("KVTOOL_STORE", "")
    assert settings().include == ("*.md", "*.txt")
    assert settings().store == Path("kv-store")
    monkeypatch.setenv("KVTOOL_INCLUDE", "*.md")
    with pytest.raises(UsageError, match=r"include.*expected JSON"):
        settings()


@pytest.mark.parametrize("place", ["kvtool.toml", "pyproject.toml", "user"])
def test_an_unknown_setting_is_named_with_its_file(place: str) -> None:
    path = user_file() if place == "user" else Path(place)
    path.write_text('[tool.kvtool]\nstoer = "x"' if place == "pyproject.toml" else 'stoer = "x"')
    with pytest.raises(UsageError, match=rf"{path}: unknown setting stoer; did you mean store\?"):
        settings()


@pytest.mark.parametrize(
    ("text", "field"),
    [('dtype = "int8"', "dtype"), ('segment_tokens = "many"', "segment_tokens"), ("store = 3", "store"),
     ("include = 3", "include"), ('load_in = "3bit"', "load_in"), ("[model]\nname = 3", "model")],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_named_with_its_field(text: str, field: str) -> None:
    Path("kvtool.toml").write_text(text)
    flag = field.replace("_", "-")
    with pytest.raises(
        UsageError, match=rf"setting {field}\b.* is .*--{flag}, KVTOOL_{field.upper()}, kvtool.toml"
    ):
        settings()


@pytest.mark.parametrize("data", [b"store = ", b"\xff\xfe", b"[[["])
@pytest.mark.parametrize("place", ["kvtool.toml", "pyproject.toml", "user"])
def test_a_file_that_is_not_toml_is_named(place: str, data: bytes) -> None:
    (user_file() if place == "user" else Path(place)).write_bytes(data)
    with pytest.raises(UsageError, match="is not TOML"):
        settings()


@pytest.mark.parametrize("place", ["kvtool.toml", "pyproject.toml", "user"])
def test_a_byte_order_mark_is_taken_off(place: str) -> None:
    text = '[tool.kvtool]\nmodel = "m"' if place == "pyproject.toml" else 'model = "m"'
    path = user_file() if place == "user" else Path(place)
    path.write_text(text, encoding="utf-8-sig")
    assert settings().model == "m"
    path.write_text(text.replace("model", "moodel"), encoding="utf-8-sig")
    with pytest.raises(UsageError, match=rf"{path}: unknown setting moodel"):
        settings()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("KVTOOL_MODLE", "did you mean KVTOOL_MODEL"),
        ("kvtool_stor", "KVTOOL_STORE"),
        ("KVTOOL_2222222222", "known are"),
    ],
)
def test_an_unknown_variable_is_named(monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.setenv(name, "")
    with pytest.raises(UsageError, match=rf"{name}: unknown variable .*{says}"):
        settings()


def test_variables_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "KVTOOLS",
        "KVTOOL",
        "KVTOOL_TOKEN",
        "KVTOOL_CACHE_DIR",
        "KVTOOL_SERVICE_HOST",
        "KVTOOL_PORT_80_TCP",
    ):
        monkeypatch.setenv(name, "x")
    assert settings() == Settings()


def test_every_other_variable_is_documented() -> None:
    assert tuple(VARIABLES) == OTHER_VARIABLES


def test_another_tools_pyproject_is_left_alone() -> None:
    Path("pyproject.toml").write_text('[tool.other]\nstore = "x"')
    assert settings() == Settings()
