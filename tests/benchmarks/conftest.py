"""benchmarks/ is no package of the installed kvtool: it is found from the repository."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
