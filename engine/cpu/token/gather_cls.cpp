#include "engine/ops/token/gather_cls.h"

#include "engine/cpu/core/dispatch.h"

namespace pm::cpu {

void gather_cls(const GatherClsArgs& args) {
  const int64_t cls = (args.region_len - 1) / 2;
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* tokens = static_cast<const T*>(args.tokens);
    T* out = static_cast<T*>(args.out);
    for (int64_t region = 0; region < args.regions; ++region) {
      const T* token = tokens + (region * args.region_len + cls) * args.channels;
      for (int64_t c = 0; c < args.channels; ++c) out[region * args.channels + c] = token[c];
    }
  });
}

void gather_cls_grad(const GatherClsGradArgs& args) {
  const int64_t cls = (args.region_len - 1) / 2;
  dispatch_float(args.dtype, [&]<typename T>() {
    const T* dout = static_cast<const T*>(args.dout);
    T* dtokens = static_cast<T*>(args.dtokens);
    for (int64_t region = 0; region < args.regions; ++region) {
      T* token = dtokens + (region * args.region_len + cls) * args.channels;
      for (int64_t c = 0; c < args.channels; ++c) token[c] = dout[region * args.channels + c];
    }
  });
}

}  // namespace pm::cpu
