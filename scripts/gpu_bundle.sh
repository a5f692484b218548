#!/usr/bin/env bash
# Packs the built programs for a GPU machine that has the CUDA libraries but not the others:
#   programs.tar.xz  bin/: pixel-mamba and the tests that use a GPU, stripped; lib/: the shared libraries they need that a bare
#                    machine lacks. Every program holds the same kernels: a dictionary larger than all of them keeps one copy
#   tests/golden/    stored references
#   run              run NAME [arguments]: starts bin/NAME with those libraries, from the folder of the bundle
#   gpu_tests.sh, sanitize.sh: what it is for
# usage: scripts/gpu_bundle.sh [FOLDER]          default .gpu/bundle; PM_BUILD_DIR names the build folder, PM_BUNDLE_MIB the
#                                                most that the bundle may weigh (60)
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=${PM_BUILD_DIR:-$root/build}
bundle=${1:-$root/.gpu/bundle}
limit=${PM_BUNDLE_MIB:-60}

if [[ -e "$bundle" && ! -x "$bundle/run" ]]; then
  echo "error: $bundle exists and is no bundle: name another folder" >&2
  exit 2
fi
programs=()
for program in "$build"/bin/pixel-mamba "$build"/bin/pm_test_*; do
  if [[ ! -x "$program" ]]; then continue; fi
  if [[ "${program##*/}" != pixel-mamba && "${program##*/}" != pm_test_planted ]]; then
    # Catch2's exit code is the number of tests in version 2, 0 in version 3.
    names=$("$program" --list-test-names-only '[cuda]' 2>/dev/null || true)
    names+=$("$program" --list-tests --verbosity quiet '[cuda]' 2>/dev/null || true)
    if ! grep -qvE '^(0 matching|[0-9]+ matching|Matching|No |$)' <<<"$names"; then continue; fi
  fi
  programs+=("$program")
done
if ((${#programs[@]} == 0)); then
  echo "error: no programs in $build/bin: build first (scripts/test.sh)" >&2
  exit 1
fi

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir "$stage/bin" "$stage/lib"
for program in "${programs[@]}"; do strip -o "$stage/bin/${program##*/}" "$program"; done

# Left out: what is part of every Linux (glibc, the loader), of the driver, or of the CUDA toolkit.
system='^(ld-linux.*|linux-vdso.*|lib(c|m|dl|rt|pthread|resolv|util|nsl|anl)\.so.*)$'
cuda='^lib(cuda|cudart|cublas|cublasLt|nvidia-.*)\.so.*$'
missing=$(ldd "${programs[@]}" | awk '/not found/ {print $1}' | sort -u)
if [[ -n "$missing" ]]; then
  echo "warning: not on this machine, so not packed: ${missing//$'\n'/ }" >&2
fi
while read -r name path; do
  if [[ "$name" =~ $system || "$name" =~ $cuda ]]; then continue; fi
  cp -L "$path" "$stage/lib/$name"
done < <(ldd "${programs[@]}" | awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}' | sort -u)

rm -rf "$bundle"
mkdir -p "$bundle/tests"
tar -C "$stage" -cf - bin lib | xz --lzma2=preset=1,dict=128MiB >"$bundle/programs.tar.xz"
cp -r "$root/tests/golden" "$bundle/tests/"
cp "$root/scripts/gpu_tests.sh" "$root/scripts/sanitize.sh" "$bundle/"
cat >"$bundle/run" <<'RUN'
#!/usr/bin/env bash
# run NAME [arguments]: starts bin/NAME with the libraries of the bundle. run --unpack: unpacks them only.
cd "$(dirname "${BASH_SOURCE[0]}")" || exit 1
if [[ ! -d programs ]]; then  # unpack beside it and rename: several may start at once
  unpacked=$(mktemp -d .programs.XXXXXX)
  tar -xJf programs.tar.xz -C "$unpacked" || python3 -m tarfile -e programs.tar.xz "$unpacked" || exit 1
  mv -T "$unpacked" programs 2>/dev/null || rm -rf "$unpacked"
  ln -sfn programs/bin bin
fi
if [[ "${1:-}" == --unpack ]]; then exit 0; fi
cuda=${CUDA_HOME:-/usr/local/cuda}
export LD_LIBRARY_PATH="$PWD/programs/lib:$cuda/lib64:$cuda/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
program=$1
shift
exec "./programs/bin/$program" "$@"
RUN
chmod +x "$bundle/run" "$bundle"/*.sh

size=$(du -sk --apparent-size "$bundle" | cut -f1)
echo "$bundle: $((size / 1024)) MiB, ${#programs[@]} programs, $(find "$stage/lib" -type f | wc -l) libraries"
if ((size > limit * 1024)); then
  echo "error: more than $limit MiB. The largest files before packing:" >&2
  find "$stage" -type f -printf '%k KiB %P\n' | sort -rn | sed 10q >&2
  exit 1
fi
