#!/usr/bin/env bash
# From a fresh checkout to a cross-validated model, its report and the prediction of a slide: installs, builds, writes a made-up
# cohort, trains, infers. With a slide: builds and infers.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: scripts/quickstart.sh [SLIDE [options of `pixel-mamba infer`]]
  scripts/quickstart.sh                               builds, learns from a made-up cohort and predicts one of its slides
  scripts/quickstart.sh slide.svs                     builds and predicts a slide of yours, with random weights
  scripts/quickstart.sh slide.svs --slide-mpp 0.25    for a file that does not say its micrometres per pixel
Without a GPU it builds for the CPU alone, which takes half the time; PM_WITH_CUDA=ON builds the CUDA kernels all the same.
Environment: PM_JOBS (compilers at a time), PM_WITH_CUDA (AUTO, ON, OFF), PM_SKIP_INSTALL=1 (do not touch packages).
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
if [[ ! -f "${here}build/CMakeCache.txt" && -z "${PM_WITH_CUDA:-}" && -z "$(gpu_architecture)" ]]; then
  export PM_WITH_CUDA=OFF
  echo "no GPU here, so this builds for the CPU alone (PM_WITH_CUDA=ON builds the CUDA kernels too)"
fi
if [[ "${PM_SKIP_INSTALL:-0}" != 1 ]]; then "$root/scripts/install.sh"; fi

mkdir -p "${here}build"
: >"$log"
if [[ -f "${here}build/CMakeCache.txt" ]]; then  # perhaps set up by scripts/test.sh: leave its tests in
  step "configure" configure "${here}build"
else
  step "configure" configure "${here}build" -DPM_BUILD_TESTS=OFF
fi
step "build ($(describe_build))" build "${here}build" pixel-mamba

trained=0
if [[ -z "$slide" ]]; then
  trained=1
  cohort=${here}quickstart/cohort run=${here}quickstart/run
  if [[ ! -e "$cohort/slides.csv" ]]; then  # the table is written last
    rm -rf "$cohort" "$run"
    step "write a made-up cohort" "$program" synth "$cohort" --cases 300 --folds 3
  fi
  # Goes on where an interrupted one stopped.
  train=(finetune "$cohort/slides.csv" --splits "$cohort/splits" --config "${here}scripts/quickstart.json" --out "$run" --resume)
  echo
  echo "$program ${train[*]}"
  begin=$SECONDS
  "$program" "${train[@]}"
  echo "trained and judged in $((SECONDS - begin)) s"
  slide=$cohort/slides/case-001.tif
  fold=$(grep -lE ',case-001$' "$cohort"/splits/splits_*.csv | sed -E 's/.*splits_([0-9]+)\.csv/\1/')  # that held it out
  model=$run/fold-$fold/model
fi
if ((!has_model)); then arguments+=(--model "$model"); fi
if ((!has_out)); then arguments+=(--out "$out"); fi

echo
echo "$program infer $slide ${arguments[*]}"
begin=$SECONDS
"$program" infer "$slide" "${arguments[@]}"
seconds=$((SECONDS - begin))

echo
echo "Predicted in $seconds s. Written:"
if ((trained)); then
  cat <<TEXT
  $run/report.html          the cross validation on one page: open it in a browser
  $run/predictions.csv      the risk of every held-out case, with its follow-up
  $run/fold-*/model         the networks
TEXT
fi
cat <<TEXT
  $out/predictions.csv   one row per slide: size, resolution, regions, predicted class or risk
  $out/embeddings.npy    one row of float32 numbers per slide: the slide as the network sees it
TEXT
if ((trained)); then
  cat <<'TEXT'

The slides are made up: io/synth/synth_cohort.h says what their outcomes depend on and how well they can be ranked.
TEXT
elif [[ "$model" == 6m || "$model" == 21m ]]; then
  cat <<'TEXT'

The weights are random (seed 0): the prediction means nothing until a model is trained. What this run shows is that
reading, the whole network and writing work on this machine.
TEXT
fi
cat <<TEXT

Next
  what is in the file           $program inspect $slide
  a slide of yours              scripts/quickstart.sh slide.svs       (--slide-mpp 0.25 if it does not say its resolution)
  train on your own slides      $program finetune slides.csv --folds 5 --out run       (CSV with the columns path,label)
  more examples                 $program
  build and run the tests       scripts/test.sh
TEXT
