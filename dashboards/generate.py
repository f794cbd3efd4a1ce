#!/usr/bin/env python3
"""Writes the dashboards: `dashboards/generate.py` makes every *.json beside it from source/*.py.

With --check nothing is written, and the exit code is 1 if a file is not what would be written.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "source"))

import cluster  # noqa: E402
import speculation  # noqa: E402
import sre  # noqa: E402
import weights  # noqa: E402


def files():
    """What each file must hold, by path."""
    return {
        HERE / (module.__name__ + ".json"): json.dumps(module.DASHBOARD, indent=1) + "\n"
        for module in (cluster, speculation, sre, weights)
    }


def main(check):
    old = [path for path, text in files().items()
           if not path.exists() or path.read_text() != text]
    for path in old:
        if check:
            print(f"{path.name} is not what dashboards/generate.py writes; run it")
        else:
            path.write_text(files()[path])
    return 1 if check and old else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] == ["--check"]))
