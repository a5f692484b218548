#!/usr/bin/env bash
# From a fresh checkout to the prediction of a slide: installs, builds, writes made-up slides if none is given, infers.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: scripts/quickstart.sh [SLIDE [options of `pixel-mamba infer`]]
  scripts/quickstart.sh                               builds, writes made-up slides and predicts one
  scripts/quickstart.sh slide.svs                     the same with a slide of yours
  scripts/quickstart.sh slide.svs --slide-mpp 0.25    for a file that does not say its micrometres per pixel
Environment: PM_JOBS (compilers at a time), PM_WITH_CUDA=OFF (CPU only), PM_SKIP_INSTALL=1 (do not touch packages).
TEXT
}

slide=""
if (($# > 0)); then
  slide=$1
  shift
  case "$slide" in
    -h | --help) usage; exit 0 ;;
    -*) usage >&2; exit 2 ;;
  esac
  if [[ ! -e "$slide" ]]; then
    echo "error: $slide: no such file" >&2
    exit 3
  fi
fi

# Paths as the user would type them from where they stand.
here=$(realpath --relative-to=. "$root")
here=$([[ "$here" == . ]] || echo "$here/")
log=${here}build/quickstart.log
program=${here}build/bin/pixel-mamba
model=6m
out=${here}quickstart/result
arguments=("$@")
has_model=0 has_out=0
for ((i = 0; i < ${#arguments[@]}; ++i)); do
  case "${arguments[i]}" in
    --model) has_model=1 model=${arguments[i + 1]:-} ;;
    --model=*) has_model=1 model=${arguments[i]#--model=} ;;
    --out) has_out=1 out=${arguments[i + 1]:-} ;;
    --out=*) has_out=1 out=${arguments[i]#--out=} ;;
  esac
done
if ((!has_model)); then arguments+=(--model "$model"); fi
if ((!has_out)); then arguments+=(--out "$out"); fi

if [[ "${PM_SKIP_INSTALL:-0}" != 1 ]]; then "$root/scripts/install.sh"; fi

mkdir -p "${here}build"
: >"$log"
if [[ -f "${here}build/CMakeCache.txt" ]]; then  # perhaps set up by scripts/test.sh: leave its tests in
  step "configure" configure "${here}build"
else
  step "configure" configure "${here}build" -DPM_BUILD_TESTS=OFF
fi
step "build ($(describe_build))" build "${here}build" pixel-mamba

if [[ -z "$slide" ]]; then
  cohort=${here}quickstart/example
  slide=$cohort/slides/case-001.tif
  if [[ ! -e "$cohort/slides.csv" ]]; then  # the table is written last
    rm -rf "$cohort"
    step "write two example slides" "$program" synth "$cohort" --cases 2 --folds 2 --size 4096x3072 --mpp 0.5
  fi
fi

echo
echo "$program infer $slide ${arguments[*]}"
begin=$SECONDS
"$program" infer "$slide" "${arguments[@]}"
seconds=$((SECONDS - begin))

cat <<TEXT

Done in $seconds s. Written:
  $out/predictions.csv   one row per slide: size, resolution, regions, predicted class, probability of each class
  $out/embeddings.npy    one row of float32 numbers per slide: the slide as the network sees it
TEXT
if [[ "$model" == 6m || "$model" == 21m ]]; then
  cat <<'TEXT'

The weights are random (seed 0): the prediction means nothing until a model is trained. What this run shows is that
reading, the whole network and writing work on this machine.
TEXT
fi
cat <<TEXT

Next
  what is in the file           $program inspect $slide
  a slide of yours              scripts/quickstart.sh slide.svs       (--slide-mpp 0.25 if it does not say its resolution)
  train on your own slides      $program finetune slides.csv --out run       (CSV with the columns path,label)
  more examples                 $program
  build and run the tests       scripts/test.sh
TEXT
