#!/usr/bin/env bash
# Packs a build for `tests/gpu/run.sh` on another machine: tests/gpu/bundle.sh BUILD OUT.tar.gz
# In it: the program, the GPU's tests, the libraries that they link (Debian has no static CAF,
# Highway or httplib), and the check itself. Not in it: glibc and the driver, which the other
# machine has; its glibc must not be older than this one's. CUDA's runtime is linked statically.
set -euo pipefail
if [[ $# -ne 2 || ! -x "$1/rollcast" ]]; then
  echo "usage: tests/gpu/bundle.sh BUILD OUT.tar.gz, where BUILD/rollcast is built" >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
build=$(cd "$1" && pwd)
out=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root="$work/rollcast-gpu"
mkdir -p "$root/lib" "$root/gpu_tests"
programs=("$build/rollcast")
for test in tests/unit/cuda/cuda_kernels_check tests/gpu/cuda_backend_check; do
  if [[ -x "$build/$test" ]]; then
    programs+=("$build/$test")
  else
    echo "tests/gpu/bundle.sh: $build/$test is not built, the check will go without it" >&2
  fi
done
for program in "${programs[@]}"; do
  target="$root/gpu_tests/$(basename "$program")"
  [[ "$program" == "$build/rollcast" ]] && target="$root/rollcast"
  install -m 755 "$program" "$target"
  strip "$target"
  # Of glibc there must be one, the machine's own: these go with its loader.
  ldd "$program" | awk '$3 ~ /^\// {print $3}' \
    | grep -Ev '/(ld-linux[^/]*|lib(c|m|dl|rt|pthread|resolv|util|anl|nsl))\.so' \
    | while read -r library; do
        install -m 644 "$library" "$root/lib/$(basename "$library")"
      done
done
install -m 755 "$here/run.sh" "$root/run.sh"
install -m 644 "$here/check.py" "$here/golden.json" "$root/"
tar -C "$work" -czf "$out" rollcast-gpu
echo "$out: $(du -h "$out" | cut -f1), $((${#programs[@]} - 1)) test programs"
