#!/usr/bin/env bash
# Installs the compiler, the build tools and the libraries that Pixel-Mamba needs, on Debian 12 and Ubuntu 24.04.
# Only packages that are missing are installed. The CUDA toolkit is optional and never installed here.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: scripts/install.sh [--check]
  --check   list what is missing and install nothing (exit code 1 when something is missing)
TEXT
}

check_only=0
case "${1:-}" in
  "") ;;
  --check) check_only=1 ;;
  -h | --help) usage; exit 0 ;;
  *) usage >&2; exit 2 ;;
esac

distribution=unknown
if [[ -r /etc/os-release ]]; then
  distribution=$(. /etc/os-release && echo "${ID:-} ${ID_LIKE:-}")
fi
# The JPEG library is the one package whose name differs.
if [[ " $distribution " == *" ubuntu "* ]]; then jpeg=libjpeg-turbo8-dev; else jpeg=libjpeg62-turbo-dev; fi

packages=(
  build-essential g++ cmake ninja-build ccache pkg-config                    # build
  libopenslide-dev libtiff-dev "$jpeg" libpng-dev                            # slides and images
  libopenblas-openmp-dev                                                     # matrix products on the CPU
  nlohmann-json3-dev libcli11-dev libfmt-dev                                 # JSON, command line, text
  catch2                                                                     # tests
)

say_cuda() {
  local nvcc=""
  for nvcc in "$(command -v nvcc || true)" "${CUDA_HOME:-/nonexistent}/bin/nvcc" /usr/local/cuda/bin/nvcc; do
    [[ -n "$nvcc" && -x "$nvcc" ]] || continue
    if [[ "${PM_WITH_CUDA:-}" == OFF ]]; then
      echo "CUDA: nvcc found ($nvcc), not used: PM_WITH_CUDA=OFF"
    else
      echo "CUDA: nvcc found ($nvcc), so the GPU kernels are built too (unless PM_WITH_CUDA=OFF)"
    fi
    return
  done
  echo "CUDA: nvcc not found, so the build is for the CPU only (CUDA_HOME says where a toolkit is; it is optional)"
}

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "libraries: this system has no apt, so nothing is installed. On Debian 12 the packages would be:"
  echo "  ${packages[*]}"
  say_cuda
  exit 0
fi

find_missing() {
  missing=()
  local package
  for package in "${packages[@]}"; do
    if [[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)" != installed ]]; then
      missing+=("$package")
    fi
  done
}

find_missing
if ((${#missing[@]} == 0)); then
  echo "libraries: all ${#packages[@]} packages are installed"
  say_cuda
  exit 0
fi
if ((check_only)); then
  echo "libraries: ${#missing[@]} of ${#packages[@]} packages are missing: ${missing[*]}"
  say_cuda
  exit 1
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    echo "error: installing packages needs root and there is no sudo. As root, run:" >&2
    echo "  apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi

log=$(mktemp "${TMPDIR:-/tmp}/pixel-mamba-install.XXXXXX")
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@" >>"$log" 2>&1
}
echo "libraries: installing ${#missing[@]} packages with ${as_root[*]:+${as_root[*]} }apt-get: ${missing[*]}"
# A failed update is no reason to stop: the lists at hand may do.
apt update || echo "warning: apt-get update failed, going on with the package lists at hand" >&2
if ! apt install --no-install-recommends "${missing[@]}"; then
  tail -n 25 "$log" >&2
  echo "error: apt-get could not install the packages; its whole output is in $log" >&2
  exit 1
fi
find_missing
if ((${#missing[@]} != 0)); then
  echo "error: still missing after apt-get: ${missing[*]} (output in $log)" >&2
  exit 1
fi
rm -f "$log"
echo "libraries: installed"
say_cuda
