// How the CUDA gradient of selective_scan lays channels over blocks, and the scratch memory that follows from it: sizes alone,
// so that memory can be predicted where there is no GPU. cuda/scan/selective_scan_grad.cu uses the same functions.
#pragma once
#include <algorithm>

#include "engine/ops/scan/selective_scan.h"

namespace pm::cuda {
namespace scan {

constexpr int64_t kGradChunk = 64;                     // tokens
constexpr int64_t kSmallPartials = int64_t{64} << 20;  // floats of dB and dC partials that need no saving

// Sizes of pass 3.
struct Blocks {
  int warps;       // of a block
  int rounds;      // sets of channel groups that a block takes
  int64_t blocks;  // of channels, for each chunk
  // One block takes all channels: it writes dB and dC itself.
  bool direct() const { return blocks == 1 && rounds == 1; }
};

// Lanes that own a channel, four states each: 1, 2, 4, 8 or 16.
inline int64_t lanes_for(int64_t d_state) {
  int64_t lanes = 1;
  while (4 * lanes < d_state) lanes *= 2;
  return lanes;
}

// A block writes 2 * d_state floats per token for its channels; several rounds per block keep that near one float per element of
// u where it would otherwise be large (d_state above 16: few channels per warp).
inline Blocks blocks_of(const SelectiveScanArgs& a) {
  const auto pieces = [](int64_t whole, int64_t piece) { return (whole + piece - 1) / piece; };
  const int64_t lanes = lanes_for(a.d_state), channels = 32 / lanes;  // of a warp
  const int64_t max_warps = lanes == 16 ? 2 : 4;                      // 48 KiB of shared memory without asking for more
  const int64_t groups = pieces(a.d_inner, channels), sets = pieces(groups, max_warps), warps = pieces(groups, sets);
  const bool small = sets * 2 * a.batch * a.seq_len * a.d_state <= kSmallPartials;
  const int64_t rounds = small ? 1 : std::min(sets, pieces(2 * a.d_state, warps * channels));
  return {static_cast<int>(warps), static_cast<int>(rounds), pieces(sets, rounds)};
}

}  // namespace scan

// Most scratch memory of a gradient: chunk summaries, partials of the parameters and of dB and dC. (Summaries of the forward
// pass, 2 % of the tensors around it, are not predicted.)
inline int64_t selective_scan_grad_scratch(const SelectiveScanArgs& a) {
  const scan::Blocks blocks = scan::blocks_of(a);
  const int64_t chunks = (a.seq_len + scan::kGradChunk - 1) / scan::kGradChunk, channels = a.batch * chunks * a.d_inner;
  const int64_t summaries = chunks > 1 ? channels * (2 * a.d_state + 1) : 0;
  const int64_t pairs = blocks.direct() ? 0 : blocks.blocks * 2 * a.batch * a.seq_len * a.d_state;
  return (summaries + pairs + channels * (a.d_state + 2)) * 4;
}

}  // namespace pm::cuda
