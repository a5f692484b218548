# shellcheck shell=bash
# shellcheck disable=SC2154  # log: see below
# Shared by the scripts beside it: steps with a time and a log, and the build. Meant to be sourced.
# The caller sets `log`, the file that the output of quiet steps goes to.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# step LABEL COMMAND..: runs the command with its output in $log; one line with seconds; on failure the end of the output.
step() {
  local label=$1 begin=$SECONDS first status=0
  shift
  mkdir -p "$(dirname "$log")"
  touch "$log"
  first=$(($(wc -l <"$log") + 1))
  printf '%-34s' "$label"
  "$@" >>"$log" 2>&1 || status=$?
  if ((status != 0)); then
    printf 'failed after %d s\n' $((SECONDS - begin))
    {
      echo
      if (($(wc -l <"$log") - first > 30)); then  # compiler errors come before the last lines
        tail -n "+$first" "$log" | grep -E '(error|Error|FAILED|fatal)[: ]' | head -n 20 || true
        echo "--- last lines"
      fi
      tail -n "+$first" "$log" | tail -n 30
      printf '\nerror: "%s" failed with exit code %d; its whole output is in %s\n' "$label" "$status" "$log"
    } >&2
    exit "$status"
  fi
  printf '%4d s\n' $((SECONDS - begin))
}

# The GPU architecture to build for: the one in this machine. Without a GPU CMakeLists.txt decides.
gpu_architecture() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -dc '0-9') || true
  if [[ -n "$capability" ]]; then echo "$capability-real"; fi
}

# configure FOLDER [cmake arguments]: an existing build folder keeps its generator and its settings.
configure() {
  local folder=$1 architecture
  shift
  local arguments=(-S "$root" -B "$folder")
  if [[ ! -f "$folder/CMakeCache.txt" ]]; then
    arguments+=(-DCMAKE_BUILD_TYPE=Release)
    if command -v ninja >/dev/null; then arguments+=(-G Ninja); fi
    architecture=$(gpu_architecture)
    if [[ -n "$architecture" && -z "${CUDAARCHS:-}" ]]; then arguments+=("-DCMAKE_CUDA_ARCHITECTURES=$architecture"); fi
  fi
  if [[ -n "${PM_WITH_CUDA:-}" ]]; then arguments+=("-DPM_WITH_CUDA=$PM_WITH_CUDA"); fi
  cmake "${arguments[@]}" "$@"
}

# build FOLDER TARGET: at most PM_JOBS compilers at a time (default: as many as there are processors).
build() { cmake --build "$1" --target "$2" --parallel "${PM_JOBS:-$(nproc)}"; }

# What the last configure decided about the GPU, in words.
describe_build() {
  if grep -q '^-- CPU only' "$log"; then
    echo "CPU only"
  else
    echo "CPU and $(grep '^-- CUDA [0-9]' "$log" | tail -n 1 | cut -c4-)"
  fi
}
