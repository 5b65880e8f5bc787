"""Runs a whole suite and prints what came of it: python -m tests.suites families|encodings [--write PAGE].

Ends with 1 where an answer or a text is silently wrong, or something ends with an error that is none of kvtool's own.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# Tiny models: threads would only wait for each other. Nothing is fetched from the hub.
os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"})

from kvtool.model.hf_logging import quiet
from tests.suites import encodings_report, families_report

SUITES = {"families": families_report, "encodings": encodings_report}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.suites", description=__doc__)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--write", type=Path, help="the page that shows the results")
    options = parser.parse_args()
    suite = SUITES[options.suite]
    with quiet():
        results = suite.run()
    page = suite.page(results)
    if options.write:
        options.write.write_text(page)
    print(page)
    return int(not suite.passes(results))


if __name__ == "__main__":
    sys.exit(main())
