"""Write the texts that come with kvtool for calibrations of any model.

python -m benchmarks sample_texts
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import zstandard

import kvtool
from benchmarks.common.arguments import make_parser
from benchmarks.corpora.bundled import SAMPLED, texts_for_sample
from kvtool.calibration.sample_texts import FILE


def main(argv: Sequence[str]) -> None:
    make_parser(__doc__).parse_args(argv)
    licences = {source.name: licence for _, source, licence in SAMPLED}
    texts = [
        {"source": text.source, "licence": licences[text.source], "text": text.text}
        for text in texts_for_sample(kvtool.load_model())
    ]
    content = json.dumps(texts, ensure_ascii=False, indent=1).encode()
    FILE.write_bytes(zstandard.ZstdCompressor(level=19).compress(content))
    print(f"{FILE}: {len(texts)} texts, {len(content):,} bytes in {FILE.stat().st_size:,}")
