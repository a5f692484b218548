#!/usr/bin/env bash
# Plants one mistake at a time in a copy of the source tree: scripts/ci/check_layers.sh must find each.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
missed=0 planted=0

# plant FILE PATTERN-OF-THE-REPORT [TEXT]: appends the text (default: standard input) to the file in a fresh copy.
plant() {
  local file=$1 expected=$2 output
  rm -rf "${copy:?}"/*
  for folder in engine cuda autograd layers io apps tests; do
    if [[ -d "$folder" ]]; then cp -r "$folder" "$copy"; fi
  done
  rm -rf "$copy/tests/golden"
  mkdir -p "$(dirname "$copy/$file")"
  cat >>"$copy/$file"
  planted=$((planted + 1))
  if output=$(scripts/ci/check_layers.sh "$copy"); then
    echo "not found: $expected ($file)"
    missed=$((missed + 1))
  elif ! grep -qE "^$file:[0-9]+: .*$expected" <<<"$output"; then
    printf 'found something else than "%s" in %s:\n%s\n' "$expected" "$file" "$output"
    missed=$((missed + 1))
  fi
}

plant engine/core/planted.cpp 'may not include' <<<'#include "engine/ops/dispatch.h"'
plant engine/core/planted.cpp 'CUDA header outside' <<<'#include <cuda_runtime.h>'
plant apps/planted.cpp 'CUDA header outside' <<<'#  include <cublas_v2.h>'
plant engine/cpu/elementwise/planted.cpp 'may not include' <<<'#include "cuda/core/stream.h"'
plant cuda/elementwise/planted.cu 'may not include' <<<'#include "engine/cpu/core/dispatch.h"'
plant cuda/elementwise/planted.cu 'may not include' <<<'#include "autograd/core/variable.h"'
plant engine/ops/elementwise/planted.cpp 'may not include' <<<'#include "autograd/core/variable.h"'
plant engine/ops/elementwise/planted.h 'may not include' <<<$'#pragma once\n#include "cuda/core/stream.h"'
plant layers/nn/planted.cpp 'may not include' <<<'#include "tests/support/test.h"'
plant autograd/core/planted.cpp 'may not include' <<<'#include "autograd/ops/scaled_add.h"'
plant engine/core/planted.cpp 'not a path from the root' <<<'#include "tensor.h"'
plant engine/newer/planted.cpp 'no rule for this folder' <<<'#include "engine/core/tensor.h"'
plant engine/core/planted.h 'no #pragma once' <<<'int planted();'
plant engine/core/planted.h 'using namespace' <<<$'#pragma once\nusing namespace std;'
plant cuda/elementwise/planted.cu 'launch without PM_CHECK_LAUNCH' <<<$'void f() {\n  kernel<<<1, 1>>>();\n}'
plant cuda/elementwise/planted.cu 'launch without PM_CHECK_LAUNCH' <<<$'void f() {\n  a<<<1, 1>>>();\n  b<<<1, 1>>>();\n  PM_CHECK_LAUNCH("b");\n}'
plant cuda/elementwise/planted.cu 'launch without PM_CHECK_LAUNCH' <<<$'void f() {\n  a<<<1, 1>>>();  // PM_CHECK_LAUNCH("a");\n}'
plant cuda/elementwise/planted.cu 'lines, more than 400' < <(seq -f '// %g' 401)
plant engine/core/planted.cpp 'lines, more than 600' < <(seq -f '// %g' 601)
plant cuda/elementwise/planted.cu 'more than 80' < <(echo '__global__ void kernel() {'; seq -f ';  // %g' 79; echo '}')

if ((missed != 0)); then
  echo "source tree check: $missed of $planted planted mistakes were not found"
  exit 1
fi
echo "source tree check: all $planted planted mistakes were found"
