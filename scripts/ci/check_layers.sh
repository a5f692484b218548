#!/usr/bin/env bash
# Checks what the compiler does not: which folder may include which, checked kernel launches, file and kernel lengths,
# headers. Prints every offending line as FILE:LINE: what is wrong; exit code 1 when there is one.
# usage: scripts/ci/check_layers.sh [ROOT of the source tree]
set -euo pipefail
cd "${1:-$(dirname "${BASH_SOURCE[0]}")/../..}"

# FOLDER (a prefix of the including file, the longest matches) -> prefixes that it may include. Lower layers come first.
read -r -d '' layers <<'EOT' || true
engine/core/        engine/core/
engine/ops/         engine/core/ engine/ops/
engine/cpu/         engine/core/ engine/ops/ engine/cpu/
cuda/               engine/core/ engine/ops/ cuda/core/ SAME
cuda/core/          engine/core/ cuda/core/
cuda/lab/           engine/core/ engine/ops/ cuda/
engine/ops/*.cpp    engine/core/ engine/ops/ engine/cpu/core/ cuda/core/
engine/optim/       engine/core/ engine/ops/ engine/optim/
engine/comm/        engine/core/ engine/comm/
engine/metrics/     engine/core/ engine/metrics/
autograd/core/      engine/core/ engine/ops/ autograd/core/
autograd/ops/       engine/core/ engine/ops/ autograd/
layers/             engine/core/ engine/ops/ autograd/ layers/
io/slide/           engine/core/ io/slide/ io/data/
io/data/            engine/core/ io/slide/ io/data/
io/synth/           engine/core/ io/slide/ io/data/ io/synth/
io/report/          engine/core/ engine/metrics/ io/data/ io/report/
io/checkpoint/      engine/core/ engine/ops/ engine/optim/ autograd/ layers/ io/
io/config/          engine/core/ engine/ops/ engine/optim/ autograd/ layers/ io/
apps/               engine/ cuda/core/ cuda/lab/ autograd/ layers/ io/ apps/
tests/              engine/ cuda/ autograd/ layers/ io/ apps/ tests/
EOT

problems=$(mktemp)
trap 'rm -f "$problems"' EXIT
folders=()
for folder in engine cuda autograd layers io apps tests; do
  if [[ -d "$folder" ]]; then folders+=("$folder"); fi
done
mapfile -t files < <(find "${folders[@]}" -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' \) | LC_ALL=C sort)
headers=() kernels=()
for file in "${files[@]}"; do
  case "$file" in *.h | *.cuh) headers+=("$file") ;; esac
  case "$file" in *.cu | *.cuh) kernels+=("$file") ;; esac
done
report() { cat >>"$problems"; }

# 1. Includes of our own files: layers, and paths from the root.
grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*"' "${files[@]}" /dev/null |
  LAYERS="$layers" awk '
    BEGIN {
      n = split(ENVIRON["LAYERS"], lines, "\n")
      for (i = 1; i <= n; ++i) {
        split(lines[i], words, /[ \t]+/)
        sub(/^[^ \t]+[ \t]+/, "", lines[i])
        allowed[words[1]] = lines[i]
      }
    }
    function rule_for(file,   key, best, prefix) {
      best = ""
      if (file ~ /^engine\/ops\/.*\.cpp$/) return "engine/ops/*.cpp"
      for (key in allowed) {
        if (key !~ /\*/ && index(file, key) == 1 && length(key) > length(best)) best = key
      }
      return best
    }
    {
      split($0, part, ":")
      file = part[1]; line = part[2]
      included = $0
      sub(/^[^"]*"/, "", included); sub(/".*$/, "", included)
      where = file ":" line ": "
      if ((getline ignored < included) < 0) { print where "\"" included "\" is not a path from the root of the tree"; next }
      close(included)
      rule = rule_for(file)
      if (rule == "") { print where "no rule for this folder: add it to scripts/ci/check_layers.sh"; next }
      count = split(allowed[rule], prefixes, " ")
      for (i = 1; i <= count; ++i) {
        prefix = prefixes[i]
        if (prefix == "SAME") { prefix = file; sub(/[^\/]*$/, "", prefix) }
        if (index(included, prefix) == 1) next
      }
      print where rule " may not include \"" included "\""
    }' | report

# 2. The CUDA headers stay in cuda/ (and in the one file that talks to NCCL).
grep -nE '^[[:space:]]*#[[:space:]]*include[[:space:]]*<(cuda[a-z_0-9]*\.h|cublas[a-zA-Z_0-9]*\.h|nccl\.h|cub/|thrust/|cooperative_groups)' \
  "${files[@]}" /dev/null |
  grep -vE '^(cuda/|tests/.*\.cu:|engine/comm/nccl\.cpp:)' |
  sed -E 's/^([^:]*:[0-9]+:) *(.*)/\1 CUDA header outside cuda\/: \2/' | report || true

# 3. Every launch is followed by PM_CHECK_LAUNCH before the next launch (another branch of an if or switch excepted) and before
#    its function ends. 4. No kernel is longer than 80 lines.
for file in "${kernels[@]}"; do
  awk -v file="$file" '
    function unchecked() {
      if (pending) print file ":" pending ": launch without PM_CHECK_LAUNCH after it"
      pending = 0
    }
    { code = $0; sub(/\/\/.*/, "", code) }
    code ~ /(^|[^a-z_])(else|case|default)([^a-z_]|$)/ { branch = 1 }
    code ~ /<<</ { if (!branch) unchecked(); pending = NR; branch = 0 }
    code ~ /PM_CHECK_LAUNCH/ { pending = 0; branch = 0 }
    code ~ /__global__/ { kernel = NR }
    code ~ /^}/ {
      unchecked(); branch = 0
      if (kernel && NR - kernel + 1 > 80) print file ":" kernel ": kernel of " NR - kernel + 1 " lines, more than 80"
      kernel = 0
    }
    END { unchecked() }' "$file" | report
done

# 5. File lengths.
for file in "${files[@]}"; do
  case "$file" in *.cu | *.cuh) most=400 ;; *) most=600 ;; esac
  lines=$(wc -l <"$file")
  if ((lines > most)); then echo "$file:$lines: $lines lines, more than $most" | report; fi
done

# 6. Headers.
for file in "${headers[@]}"; do
  if ! grep -qE '^#pragma once' "$file"; then echo "$file:1: no #pragma once" | report; fi
done
if ((${#headers[@]} != 0)); then
  grep -nE '^[[:space:]]*using[[:space:]]+namespace' "${headers[@]}" /dev/null |
    sed -E 's/^([^:]*:[0-9]+:) *(.*)/\1 using namespace in a header: \2/' | report || true
fi

if [[ -s "$problems" ]]; then
  cat "$problems"
  echo "source tree: $(wc -l <"$problems") problems in ${#files[@]} files"
  exit 1
fi
echo "source tree: ${#files[@]} files follow the rules"
