#!/usr/bin/env bash
# Builds everything and runs the tests; says at the end what passed, what failed, and what was skipped and why.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
  cat <<'TEXT'
usage: scripts/test.sh [arguments of ctest]
  scripts/test.sh                       everything that can run here
  scripts/test.sh -R rms_norm           tests whose name matches
  PM_WITH_CUDA=OFF scripts/test.sh      CPU only, in build-cpu
  PM_SLOW=1 scripts/test.sh             also what takes minutes: learning from made-up cohorts
Environment: PM_WITH_CUDA (AUTO, ON, OFF), PM_BUILD_DIR (build folder), PM_DATA (folder of real slides for the tests that read
them), PM_JOBS (compilers and tests at a time), PM_SKIP_INSTALL=1 (do not touch packages).
TEXT
}
case "${1:-}" in -h | --help) usage; exit 0 ;; esac

export PM_WITH_CUDA=${PM_WITH_CUDA:-AUTO}  # whatever quickstart.sh set up
if [[ "$PM_WITH_CUDA" == OFF ]]; then folder=build-cpu; else folder=build; fi
folder=${PM_BUILD_DIR:-$root/$folder}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
log=$folder/test.log
results=$folder/test_results.log
: >"$log"
if [[ -n "${PM_DATA:-}" ]]; then  # the tests run in other folders
  if [[ ! -d "$PM_DATA" ]]; then
    echo "error: PM_DATA=$PM_DATA is not a folder" >&2
    exit 2
  fi
  PM_DATA=$(cd "$PM_DATA" && pwd)
  export PM_DATA
fi

if [[ "${PM_SKIP_INSTALL:-0}" != 1 ]]; then "$root/scripts/install.sh"; fi
step "configure" configure "$folder" -DPM_BUILD_TESTS=ON
step "build ($(describe_build))" build "$folder" all

# Several tests at a time, each with few threads that sleep while they wait, so that they do not fight for the processors.
# On a GPU every process holds a context of some hundred megabytes.
jobs=${PM_JOBS:-$(nproc)}
if ((jobs > 8)) && ! grep -q '^-- CPU only' "$log"; then jobs=8; fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-2} OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

status=0
ctest --test-dir "$folder" --parallel "$jobs" --output-on-failure --no-tests=error "$@" 2>&1 | tee "$results" || status=$?

# Hidden from ctest: a few tests of one thread and some minutes each.
slow_failed=0
if [[ "${PM_SLOW:-0}" == 1 ]]; then
  names=$("$folder/bin/pm_test_apps" --list-test-names-only "[training]" || true)  # Catch2 2 returns their number
  echo
  xargs -d '\n' -P "$jobs" -I{} "$folder/bin/pm_test_apps" {} --durations yes <<<"$names" || slow_failed=1
fi

# "12/80 Test #7: the name ......   Passed    0.01 sec", with "***Skipped" or "***Failed" where it did not pass
passed=$(grep -cE '^ *[0-9]+/[0-9]+ Test +#.* Passed +[0-9.]+ sec' "$results" || true)
skipped=$(grep -E '^ *[0-9]+/[0-9]+ Test +#.*\*\*\*Skipped' "$results" | sed -E 's/^[^#]*#[0-9]+: (.*[^. ]) *\.*\*\*\*Skipped.*/\1/' || true)
failed=$(sed -n '/^The following tests FAILED:/,/^Errors while/p' "$results" |
  sed -nE 's/^[[:space:]]+[0-9]+ - (.*)$/\1/p')
count() { if [[ -z "$1" ]]; then echo 0; else wc -l <<<"$1"; fi; }
list() { if [[ -n "$1" ]]; then printf '    %s\n' "${1//$'\n'/$'\n'    }"; fi; }

# The tests that need PM_DATA carry the tag [data], those that need Chromium [browser]; every other skipped one needs a GPU.
skipped_with_tag() {
  local names
  names=$(for test in "$folder"/bin/pm_test_*; do
    "$test" --list-test-names-only "$1" 2>/dev/null || "$test" --list-tests --verbosity quiet "$1" 2>/dev/null || true
  done)
  grep -Fx -f <(printf '%s\n' "$names" | grep .) <<<"$skipped" || true
}
without() { if [[ -n "$1" ]]; then grep -Fxv -f <(printf '%s\n' "$1") || true; else cat; fi; }
needs_data="" needs_browser=""
if [[ -n "$skipped" ]]; then
  if [[ -z "${PM_DATA:-}" ]]; then needs_data=$(skipped_with_tag '[data]'); fi
  needs_browser=$(skipped_with_tag '[browser]')
fi
needs_gpu=$(without "$needs_data" <<<"$skipped" | without "$needs_browser")

echo
echo "Summary"
echo "  passed   $passed"
echo "  failed   $(count "$failed")"
list "$failed"
echo "  skipped  $(count "$skipped")"
if [[ -n "$needs_data" ]]; then
  echo "   $(count "$needs_data") because PM_DATA is not set (a folder of real slides):"
  list "$needs_data"
fi
if [[ -n "$needs_browser" ]]; then
  echo "   $(count "$needs_browser") because there is no Chromium (apt-get install chromium):"
  list "$needs_browser"
fi
if [[ -n "$needs_gpu" ]]; then
  reason="there is no GPU"
  if grep -q '^-- CPU only' "$log"; then reason="this build is for the CPU only"; fi
  echo "   $(count "$needs_gpu") because $reason:"
  list "$needs_gpu"
fi
if ((slow_failed)); then
  echo "  failed: tests of learning from made-up cohorts (pm_test_apps \"[training]\")"
  status=1
fi
if ((status != 0)); then echo "  the output of the tests is in $results"; fi
exit "$status"
