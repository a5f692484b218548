#include "engine/ops/token/token_expansion.h"

#include "engine/cpu/core/dispatch.h"
#include "engine/cpu/token/expand_region.h"

namespace pm::cpu {

void token_expansion(const TokenExpansionArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* tokens = static_cast<const T*>(args.tokens);
    T* out = static_cast<T*>(args.out);
#pragma omp parallel for
    for (int64_t region = 0; region < args.map.regions; ++region) {
      expand_region(args.map, tokens + region * args.map.in_values(), out + region * args.map.out_values());
    }
  });
}

void token_expansion_grad(const TokenExpansionGradArgs& args) {
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* dout = static_cast<const T*>(args.dout);
    T* dtokens = static_cast<T*>(args.dtokens);
#pragma omp parallel for
    for (int64_t region = 0; region < args.map.regions; ++region) {
      expand_region_grad(args.map, dout + region * args.map.out_values(), dtokens + region * args.map.in_values());
    }
  });
}

}  // namespace pm::cpu
