#!/bin/sh
# Regenerates the tables of README.md from the simulator. Usage: report.sh [path of rollcast]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec python3 "$here/report.py" --readme "$here/README.md" \
  --rollcast "${1:-$here/../../build/rollcast}"
