#!/usr/bin/env bash
# Installs what Rollcast needs to build on Debian 12 (root or sudo), with --test what its tests need
# besides, with --dev clang and its tools. Prints nothing and touches nothing when everything is
# already there.
set -euo pipefail

packages=(
  g++ cmake ninja-build ccache pkg-config make
  libcaf-dev libssl-dev libzmq3-dev cppzmq-dev libprotobuf-dev protobuf-compiler
  prometheus-cpp-dev libcpp-httplib-dev libhwy-dev libcli11-dev libspdlog-dev nlohmann-json3-dev
  libexpected-dev libpcre2-dev libutf8proc-dev libxxhash-dev libsqlite3-dev libabsl-dev
  libgtest-dev libgmock-dev openssl python3 python3-venv python3-zmq python3-protobuf
)
test_packages=(
  iproute2 nftables faketime            # tests/chaos: network namespaces, clocks that jump
  prometheus python3-yaml               # tests/dashboards: promtool, a Prometheus that scrapes
  tini                                  # tests/deploy: the first process of an image
  python3-setuptools python3-wheel mypy # tests/package: pip without a network, types
  chromium                              # tests/page: what a browser shows
  clang-16 libclang-rt-16-dev           # tests/fuzz: libFuzzer
)
# A kubectl from elsewhere owns the same file as Debian's.
command -v kubectl >/dev/null || test_packages+=(kubernetes-client)
for more in "$@"; do
  case "$more" in
    --test) packages+=("${test_packages[@]}") ;;
    --dev) packages+=(clang-format-14 clang-16 libclang-rt-16-dev llvm-16) ;;
    *) echo "install_deps: unknown option $more, there are --test and --dev" >&2; exit 2 ;;
  esac
done

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' \
    || missing+=("$package")
done
((${#missing[@]})) || exit 0

as_root=()
if [[ "$(id -u)" != 0 ]]; then
  if ! command -v sudo >/dev/null; then
    echo "install_deps: need root or sudo to install: ${missing[*]}" >&2
    exit 2
  fi
  as_root=(sudo)
fi
echo "installing ${#missing[@]} Debian packages: ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# With systemd, Prometheus' package starts a server on port 9090, now and at every boot. The tests
# start their own; `systemctl unmask prometheus` is for whoever wants the service.
if [[ " ${missing[*]} " == *" prometheus "* ]]; then
  "${as_root[@]}" mkdir -p /etc/systemd/system
  "${as_root[@]}" ln -sfn /dev/null /etc/systemd/system/prometheus.service
fi
export DEBIAN_FRONTEND=noninteractive
install() {
  "${as_root[@]}" apt-get update -qq \
    && "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
}
if ! install >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  echo "install_deps: apt-get failed, see the lines above" >&2
  exit 2
fi
