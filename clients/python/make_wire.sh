#!/usr/bin/env bash
# Makes rollcast_pb2.py and .pyi from proto/rollcast.proto. Use protoc 3.21 (Debian 12): newer ones
# make code that its protobuf package cannot load.
# Usage: make_wire.sh [output directory]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/rollcast}
protoc -I "$here/../../proto" --python_out="$out" --pyi_out="$out" rollcast.proto
# What protoc 3.21 leaves for mypy --strict to complain about.
sed -i -e 's/__slots__ = \[\]/__slots__: list[str] = []/' \
  -e 's/_Mapping\]/_Mapping[str, object]]/g' "$out/rollcast_pb2.pyi"
