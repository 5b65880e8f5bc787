"""A project's first ``kvtool.toml``, from what its folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kvtool.documents.find import find
from kvtool.errors import DocumentError

FOLDERS = ("docs", "doc", "documents", "documentation", "content", "pages", "manual", "knowledge", "data")
"""Where people keep documents, the likeliest first."""

FILE = """\
# What kvtool build makes of this folder. Flags and KVTOOL_* in the environment overrule the first lines.

model = {model}
store = "kv-store"
# system = "You answer from the manual."  # is before each document

[build]
documents = [{documents}]  # files, folders and patterns; {count} now
# report = "kvtool-report.html"  # what the gates measured, with pip install 'kvtool[report]'

[[build.variants]]
recipe = "klt"  # kvtool recipes lists the others, kvtool recommend compares them on these documents
gate = {{ max_kl = 0.1 }}  # the build fails above; also min_retrieval, min_top1, min_ratio and more
"""


@dataclass(frozen=True)
class Starter:
    """The file's ``text``, how many documents it finds, and the model that it names."""

    text: str
    documents: int
    model: str


def starter(folder: Path) -> Starter:
    """Looks at ``folder``. Raises ``DocumentError`` where it has no documents."""
    for candidate in (*FOLDERS, "."):
        path = folder / candidate
        if not path.is_dir():
            continue
        found, _, _ = find([candidate], cwd=folder)
        if found:
            model = _model(folder)
            text = FILE.format(model=_quoted(model), documents=_quoted(candidate), count=len(found))
            return Starter(text, len(found), model)
    raise DocumentError(folder, "has no documents", "run kvtool init in the folder that has them")


def _model(folder: Path) -> str:
    """The only model's directory or GGUF file in the folder, or else the embedded one."""
    models = [
        path.parent.name for path in folder.glob("*/config.json") if any(path.parent.glob("*.safetensors"))
    ]
    models += [path.name for path in folder.glob("*.gguf")]
    return f"./{models[0]}" if len(models) == 1 else "embedded"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
