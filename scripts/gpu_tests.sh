#!/usr/bin/env bash
# Runs the GPU tests of a bundle (scripts/gpu_bundle.sh) and checks the stored models on the GPU; prints a summary.
# usage: gpu_tests.sh [LOG FOLDER] [FILTER]    default: gpu_logs "[cuda]"
# Environment: PM_BUNDLE (the bundle; default: the folder of this script, or .gpu/bundle beside scripts/), PM_DATA,
#              PM_TIME_LIMIT (seconds per program, 300)
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bundle=${PM_BUNDLE:-$here}
if [[ ! -x "$bundle/run" ]]; then bundle=$here/../.gpu/bundle; fi
if [[ ! -x "$bundle/run" ]]; then
  echo "error: no bundle here: run scripts/gpu_bundle.sh first, or set PM_BUNDLE" >&2
  exit 2
fi
"$bundle/run" --unpack || exit 2
logs=${1:-gpu_logs}
filter=${2:-[cuda]}
limit=${PM_TIME_LIMIT:-300}
mkdir -p "$logs"
logs=$(cd "$logs" && pwd)
if [[ -n "${PM_DATA:-}" ]]; then PM_DATA=$(realpath "$PM_DATA") && export PM_DATA; fi

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null || echo "nvidia-smi: no GPU found"
failed=0 ran=0 no_gpu=0 failed_logs=()
row() { printf '%-34s %-8s %5d s   %s\n' "$@"; }

# check NAME LOG PROGRAM [arguments]
check() {
  local name=$1 log=$logs/$2 begin=$SECONDS status=0 verdict detail
  shift 2
  timeout --kill-after=10 "$limit" "$bundle/run" "$@" >"$log" 2>&1 || status=$?
  detail=$(grep -E '^(All tests passed|test cases:|assertions:|No test|skipped:)|"verify":|error:|cannot' "$log" | tail -n 1 | cut -c1-110)
  case "$status" in
    0) verdict=passed ran=$((ran + 1)) ;;
    77)
      verdict=skipped
      if grep -q 'a CUDA device' "$log"; then no_gpu=1; fi
      ;;
    124 | 137) verdict=timeout failed=$((failed + 1)) detail="more than $limit s" failed_logs+=("$log") ;;
    *) verdict=FAILED failed=$((failed + 1)) failed_logs+=("$log") ;;
  esac
  if grep -q '^No tests\{0,1\}\( cases\)\{0,1\} \(ran\|matched\)' "$log"; then verdict="no tests"; fi
  row "$name" "$verdict" $((SECONDS - begin)) "$detail"
}

for program in "$bundle"/bin/pm_test_*; do
  name=${program##*/}
  if [[ "$name" == pm_test_planted ]]; then continue; fi  # wrong on purpose: scripts/sanitize.sh
  check "$name" "$name.log" "$name" "$filter" --durations yes
done
if [[ -x "$bundle/bin/pixel-mamba" && $# -lt 2 && $no_gpu == 0 ]]; then
  for folder in "$bundle"/tests/golden/*/; do
    model=$(basename "$folder")
    if [[ ! -f "$folder/config.json" ]]; then continue; fi
    for precision in fp32 bf16; do
      check "verify $model $precision" "verify_${model}_$precision.log" \
        pixel-mamba verify "tests/golden/$model" --device cuda --precision "$precision" --json
    done
  done
fi

echo
if ((failed != 0)); then
  echo "$failed failed; logs in $logs. First failures:"
  grep -hE -A6 'FAILED:|^error:|"ok": ?false' "${failed_logs[@]}" | head -n 60
  exit 1
fi
if ((no_gpu || ran == 0)); then
  echo "nothing was tested: no GPU could be used (logs in $logs)"
  exit 1
fi
echo "all $ran programs passed; logs in $logs"
