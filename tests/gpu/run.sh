#!/usr/bin/env bash
# Everything that must hold on a GPU, in one command of at most 8 minutes:
#
#   tests/gpu/run.sh BUILD|ARCHIVE [--out DIR] [--device N] [--seconds S] [--shape NAME]
#                    [--only NAME[,NAME]]
#
# BUILD is a build folder, ARCHIVE what `tests/gpu/bundle.sh` makes of one: that runs on any Linux
# with glibc 2.36, the NVIDIA driver, bash and python3, where nothing of Rollcast was built. Prints
# a table last and writes DIR/summary.json. Exit codes: 0 every check passed (or was skipped, with
# its reason), 1 one failed, 2 bad usage, 77 there is no GPU, so nothing was checked.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if ! command -v python3 >/dev/null; then
  echo "tests/gpu/run.sh: needs python3, which is not in the PATH" >&2
  exit 2
fi
exec python3 -B "$here/check.py" "$@"
