#!/usr/bin/env bash
# Runs the GPU tests of a bundle under the four tools of compute-sanitizer.
# usage: sanitize.sh [FILTER] [LOG FOLDER]     default: "[cuda]~[slow]" sanitize_logs
# Environment: PM_BUNDLE (as in gpu_tests.sh), PM_TOOLS ("memcheck racecheck initcheck synccheck"),
#              PM_PROGRAMS (default: every pm_test_*), PM_TIME_LIMIT (seconds per run, 540), PM_JOBS (runs at a time, 4)
# Before the tests each tool must find the bug that pm_test_planted holds for it: a sanitizer that sees nothing there would
# see nothing anywhere.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
bundle=${PM_BUNDLE:-$here}
if [[ ! -x "$bundle/run" ]]; then bundle=$here/../.gpu/bundle; fi
if [[ ! -x "$bundle/run" ]]; then
  echo "error: no bundle here: run scripts/gpu_bundle.sh first, or set PM_BUNDLE" >&2
  exit 2
fi
"$bundle/run" --unpack || exit 2
filter=${1:-[cuda]~[slow]}
logs=${2:-sanitize_logs}
limit=${PM_TIME_LIMIT:-540}
jobs=${PM_JOBS:-4}
read -r -a tools <<<"${PM_TOOLS:-memcheck racecheck initcheck synccheck}"
mkdir -p "$logs"
logs=$(cd "$logs" && pwd)

sanitizer=""
for candidate in "$(command -v compute-sanitizer || true)" "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" \
  "${CUDA_HOME:-/usr/local/cuda}/compute-sanitizer/compute-sanitizer"; do
  if [[ -z "$sanitizer" && -n "$candidate" && -x "$candidate" ]]; then sanitizer=$candidate; fi
done
if [[ -z "$sanitizer" ]]; then
  echo "error: compute-sanitizer not found: it is part of the CUDA toolkit (cuda-sanitizer package)" >&2
  exit 2
fi
if [[ -n "${PM_PROGRAMS:-}" ]]; then
  read -r -a programs <<<"$PM_PROGRAMS"
else
  programs=()
  for program in "$bundle"/bin/pm_test_*; do
    if [[ "${program##*/}" != pm_test_planted ]]; then programs+=("${program##*/}"); fi
  done
fi

# sanitize TOOL PROGRAM [arguments]: output in $logs/TOOL_PROGRAM.log, exit code in .status, seconds in .seconds
sanitize() {
  local tool=$1 program=$2 stem=$logs/$1_$2 begin=$SECONDS status=0 options=() variables=()
  shift 2
  if [[ "$tool" == memcheck ]]; then options+=(--report-api-errors no); fi  # a test provokes a refused allocation
  if [[ "$tool" == initcheck ]]; then variables+=(PM_TEST_NO_POISON=1); fi  # poisoned memory would count as written
  env "${variables[@]}" timeout --kill-after=10 "$limit" "$sanitizer" --tool "$tool" --target-processes all --error-exitcode 1 --print-limit 20 "${options[@]}" \
    "$bundle/run" "$program" "$@" >"$stem.log" 2>&1 || status=$?
  echo "$status" >"$stem.status"
  echo $((SECONDS - begin)) >"$stem.seconds"
}

# The runs share the processors: few threads each, asleep while they wait.
threads=$(($(nproc) / jobs))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((threads > 0 ? threads : 1))} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

failed=0 ran=0 failed_logs=()
fail() {
  failed=$((failed + 1))
  failed_logs+=("$stem.log")
}
row() { printf '%-10s %-20s %-8s %5d s   %s\n' "$@"; }

for tool in "${tools[@]}"; do
  sanitize "$tool" pm_test_planted "$tool"
  stem=$logs/${tool}_pm_test_planted
  if [[ "$(<"$stem.status")" != 0 ]] && grep -qE 'SUMMARY: [1-9]' "$stem.log"; then
    row "$tool" pm_test_planted found "$(<"$stem.seconds")" "the planted bug is seen"
  else
    row "$tool" pm_test_planted MISSED "$(<"$stem.seconds")" "the planted bug is not seen: see $stem.log"
    fail
  fi
done

for tool in "${tools[@]}"; do
  for program in "${programs[@]}"; do
    while (($(jobs -rp | wc -l) >= jobs)); do wait -n; done
    # initcheck takes what cuBLAS writes for unwritten (its products come out right), and needs memory without poison.
    # racecheck looks at shared memory, which cuBLAS's kernels have their own of, and is slow: tests without them hold every kernel.
    case "$tool" in
      initcheck) tests="$filter~[cublas]~[poison]" ;;
      racecheck) tests="$filter~[cublas]" ;;
      *) tests=$filter ;;
    esac
    sanitize "$tool" "$program" "$tests" &
  done
done
wait

for tool in "${tools[@]}"; do
  for program in "${programs[@]}"; do
    stem=$logs/${tool}_$program
    status=$(<"$stem.status")
    # racecheck has its own words
    detail=$(grep -E '(ERROR|RACECHECK) SUMMARY:' "$stem.log" | tail -n 1 | sed 's/^=* *//' | cut -c1-90)
    case "$status" in
      0)
        if grep -q '^No tests\{0,1\}\( cases\)\{0,1\} \(ran\|matched\)' "$stem.log"; then
          verdict="no tests"
        elif [[ -z "$detail" ]] || grep -q 'before first instrumented' "$stem.log"; then
          verdict=FAILED detail="the sanitizer saw no CUDA call"
          fail
        else
          verdict=clean ran=$((ran + 1))
        fi
        ;;
      77) verdict=skipped ;;
      124 | 137) verdict=timeout detail="more than $limit s: narrow the filter" && fail ;;
      *) verdict=FAILED && fail ;;
    esac
    row "$tool" "$program" "$verdict" "$(<"$stem.seconds")" "$detail"
  done
done

echo
if ((failed != 0)); then
  echo "$failed failed; logs in $logs. First findings:"
  grep -hE -A8 '^=+ (Invalid|Uninitialized|Error|Barrier|Warning|Program hit)|FAILED:' "${failed_logs[@]}" | head -n 60
  exit 1
fi
if ((ran == 0)); then
  echo "nothing was checked: no test matches $filter, or there is no GPU (logs in $logs)"
  exit 1
fi
echo "$ran runs, no findings; logs in $logs"
