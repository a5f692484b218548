// The way back through dt_proj and x_proj of the fused Mamba block, both directions, in one pass over the rows, for narrow
// layers: d_inner E = 6, 12, 24, 48, dt_rank R up to 4. Wider layers go through linear and block_project.cu; maths in
// engine/ops/scan/mamba_block.h. Of every row, with W = x_proj in its parts dt (R, E) and BC (32, E):
//
//   dt      = W_dt u                  (R)  again, from u: cheaper than a sector of memory for the dt columns of every row
//   ddt     = dt_weight^T ddelta      (R)
//   du_proj = W_BC^T (dB, dC) + W_dt^T ddt                (E), written
//   dW_BC  += (dB, dC) u^T,  dW_dt += ddt u^T,  d dt_weight += ddelta dt^T
//
// lanes   : eight to a row, four rows side by side, kSets such sets to a step. A lane reads four of the 32 values of dB, dC:
//           a row in one sweep of 16 bytes a lane. It keeps the four rows of W_BC that belong to them, and of their gradient,
//           in registers, and makes the products with all columns of its warp (6 of E = 6, else 12). The sums over the eight
//           lanes go by halves, so that no two lanes add the same: each ends with 3 columns of one row, and makes the small
//           products of dt for them.
//             quad 0 .. 7   | dB 0-3 | dB 4-7 | .. | dC 12-15 |      what of a row the lanes read
//             E =  6        neighbours divide the 6 columns (even, odd), the four pairs end with the four sets: 16 rows a step
//             E = 12 ..     four divide the 12 columns (halves; even, odd), both fours end with the two sets:    8 rows a step
//           A lane's columns have an order of their own, those that it ends with first: halving them needs no selection.
//           A set of the next step is loaded as soon as this step's products with it are done, so loads are always on their
//           way. Shared memory holds only W_dt, dt_weight and the sums at the end; no barrier in between.
// slices  : E = 24 and 48 are 2 and 4 slices of 12 columns, a warp each. The warps of a row read dB, dC from the cache, and
//           each makes dt and ddt from all columns, which its lanes share.
// launch  : kThreads threads, 1 to kMaxBlocks blocks a direction, each taking every kMaxBlocks-th share of 64, 32, 16 or 8
//           rows and leaving one row of sums; column_sum adds them into the gradients. 65 rows of E = 6 are 2 blocks a
//           direction, an image of 224 x 224 is 396.
// count   : of a row and direction; R = 1, for E = 48 R = 2; instructions of a warp, counted in PTX.
//                                                 E = 6     12      24      48
//             bytes, bf16 / float32             164 / 200  200 / 272  272 / 416  416 / 704     u, ddelta, du_proj, dB, dC
//             multiply-adds                         414     828   1,704   4,128
//             instructions                           27      49     105     240                half of them multiply-adds
//           128 images of 224 x 224, bf16, both directions, H200 (4.25 TB/s, 1.755 GHz); rows halve from layer to layer:
//             bytes                                0.50    0.30    0.21    0.16 ms
//             instructions                         0.37    0.34    0.36    0.42 ms
//             measured                             0.63    0.57    0.84    0.97 ms     24, 48: latency, 8 warps a multiprocessor
// registers: 155, 168, 211, 230 (float32 163, 209, 227, 243) a thread, none spilled: 12 warps a multiprocessor, above 168
//           registers 8. 12 warps of E = 6 have 31 KB on their way; 3.0 TB/s at a latency of 800 ns need 18 KB.
// numerics: float32 from what is read to what is stored. deterministic: no atomics, the shape alone orders every sum.
#include "cuda/core/pack.cuh"
#include "cuda/core/reduce.cuh"
#include "cuda/scan/block.cuh"

namespace pm::cuda::block {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * kWarp;
constexpr int64_t kMaxBlocks = 132 * 3;  // of a direction
constexpr int kPairs = 2 * kStates;      // columns of dB and dC
constexpr int kQuad = 4;                 // of them to a lane
constexpr int kLanes = kPairs / kQuad;   // of a row
constexpr int kSide = kWarp / kLanes;    // rows side by side
constexpr int kOwn = 3;                  // columns of du_proj that a lane ends with

template <int kE>
struct Geometry {
  static constexpr int kColumns = kE == 6 ? 6 : 12;  // of d_inner, to a warp
  static constexpr int kWords = kColumns / 2;        // two columns each
  static constexpr int kSlices = kE / kColumns;      // warps that share their rows
  static constexpr int kStrands = kWarps / kSlices;  // warps with rows of their own
  static constexpr int kSharers = kColumns / kOwn;   // lanes of a row that divide its columns
  static constexpr int kSets = kLanes / kSharers;    // of kSide rows, to a step
  static constexpr int kStepRows = kSets * kSide;
  static_assert(kSlices * kStrands == kWarps && kSharers * kOwn == kColumns && (kSharers == 2 || kSharers == 4));
};

// Blocks of a multiprocessor: as many as the registers allow without spills.
template <typename T, int kE, int kRank>
constexpr int kMinBlocks = kRank == 1 && (kE == 6 || (kE == 12 && sizeof(T) == 2)) ? 3 : 2;

// Two neighbouring values as they lie in memory; widened only when they are used.
template <typename T>
struct Two;
template <>
struct Two<float> {
  float2 v;
  __device__ float pick(bool second) const { return second ? v.y : v.x; }
};
template <>
struct Two<__nv_bfloat16> {
  unsigned v;
  __device__ float pick(bool second) const { return __uint_as_float(__byte_perm(v, 0u, second ? 0x3244u : 0x1044u)); }
};

template <typename T>
struct Direction {
  const float* pairs;  // (rows, 32)
  const T *u, *ddelta;
  T* du_proj;                       // (rows, E)
  const float *x_proj, *dt_weight;  // (dt_rank + 32, E), (E, dt_rank)
};
template <typename T>
struct Tensors {
  Direction<T> direction[2];
  float* partials;  // (blocks, 2, columns): gradients of x_proj, then of dt_weight
  int64_t rows;
  int dt_rank;
  __host__ __device__ int columns(int d_inner) const { return (2 * dt_rank + kPairs) * d_inner; }
};

template <int kE, int kRank>
struct Shared {
  struct alignas(2 * kRank * sizeof(float)) Ranks {  // of a column of d_inner; zero behind dt_rank
    float to_dt[kRank], from_dt[kRank];              // x_proj, dt_weight
  };
  Ranks ranks[kE];
  float sums[Geometry<kE>::kStrands][kPairs + 2 * kRank][kE];

  __device__ void load(const float* __restrict__ x_proj, const float* __restrict__ dt_weight, int dt_rank) {
    for (int i = threadIdx.x; i < kE * kRank; i += kThreads) {
      const int e = i / kRank, r = i % kRank;
      ranks[e].to_dt[r] = r < dt_rank ? x_proj[r * kE + e] : 0.0f;
      ranks[e].from_dt[r] = r < dt_rank ? dt_weight[e * dt_rank + r] : 0.0f;
    }
  }

  // The block's sums in the order of the gradients.
  __device__ void write(int dt_rank, int columns, float* __restrict__ out) const {
    for (int i = threadIdx.x; i < columns; i += kThreads) {
      int row = i / kE, e = i % kE;
      if (row < dt_rank) {
        row += kPairs;
      } else if (row < dt_rank + kPairs) {
        row -= dt_rank;
      } else {
        const int at = i - (dt_rank + kPairs) * kE;
        row = kPairs + kRank + at % dt_rank;
        e = at / dt_rank;
      }
      float sum = sums[0][row][e];
#pragma unroll
      for (int strand = 1; strand < Geometry<kE>::kStrands; ++strand) sum += sums[strand][row][e];
      out[i] = sum;
    }
  }
};

// Sum over the lanes whose numbers differ in the bits from kFirst on.
template <int kFirst>
__device__ __forceinline__ float lane_sum(float v) {
#pragma unroll
  for (int mask = kFirst; mask < kWarp; mask *= 2) v += __shfl_xor_sync(0xffffffffu, v, mask);
  return v;
}

// A lane on its way over the rows of its warp.
template <typename T, int kE, int kRank>
struct Walk {
  using G = Geometry<kE>;
  static constexpr int kColumns = G::kColumns, kWords = G::kWords, kSets = G::kSets, kSharers = G::kSharers;
  const Direction<T>& tensors;  // of its direction
  Shared<kE, kRank>& shared;
  const int lane = threadIdx.x % kWarp, slice = threadIdx.x / kWarp % G::kSlices;
  const int quad = lane % kLanes, side = lane / kLanes;  // columns of dB and dC; row of a set
  const int parity = quad % 2, turn = quad / 2 % (kSharers / 2),
            set = quad / kSharers;                      // which columns and row it ends with
  const int near = slice * kColumns + 2 * kOwn * turn;  // the words with those columns;
  const int far = 2 * kOwn * (1 - 2 * turn);            // the other words, if any, seen from there
  float weight[kQuad][kColumns];                        // of x_proj
  float sums[kQuad][kColumns] = {};                     // of its gradient
  float x_sums[kOwn][kRank] = {}, dt_sums[kOwn][kRank] = {};
  float4 pairs[kSets];
  Two<T> u[kSets][kWords];

  __device__ Walk(const Direction<T>& t, Shared<kE, kRank>& s, int dt_rank) : tensors(t), shared(s) {
    const float* source = t.x_proj + (dt_rank + quad * kQuad) * kE;
#pragma unroll
    for (int i = 0; i < kQuad * kColumns; ++i) {
      weight[i / kColumns][i % kColumns] = source[i / kColumns * kE + column(i % kColumns)];
    }
  }
  // A lane's i-th column: those that it ends with come first.
  __device__ int column(int i) const {
    const int word = i % kWords;
    return near + (word < kOwn ? 2 * word : far + 2 * (word - kOwn)) + (parity ^ (i / kWords));
  }

  // The lane's row of set s of a step of `count` rows; behind them dB and dC are zero. first_pairs, first_u: of set 0.
  __device__ void load(int s, const float* first_pairs, const T* first_u, int count) {
    const int row = min(s * kSide, count - 1 - side);
    pairs[s] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (row == s * kSide) pairs[s] = *reinterpret_cast<const float4*>(first_pairs + row * kPairs);
    const T* word = first_u + row * kE;
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      u[s][w] = *reinterpret_cast<const Two<T>*>(w < kOwn ? word + 2 * w : word + far + 2 * (w - kOwn));
    }
  }

  // Both products of a row of set s; du: what the row's dB and dC give the lane's own columns of du_proj.
  __device__ void multiply(int s, float (&du)[kOwn]) {
    const float p[kQuad] = {pairs[s].x, pairs[s].y, pairs[s].z, pairs[s].w};
    float part[kColumns];  // from the lane's columns of dB and dC
#pragma unroll
    for (int i = 0; i < kColumns; ++i) {
      const float value = u[s][i % kWords].pick(parity != i / kWords);
      part[i] = 0.0f;
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        part[i] = fmaf(p[k], weight[k][i], part[i]);
        sums[k][i] = fmaf(p[k], value, sums[k][i]);
      }
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) part[i] += __shfl_xor_sync(0xffffffffu, part[i + kWords], 1);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      du[i] = part[i];
      if constexpr (kSharers == 4) du[i] += __shfl_xor_sync(0xffffffffu, part[i + kOwn], 2);
    }
  }

  // Sums over the lanes that have the same columns of a row. du[s]: of set s; afterwards du[0]: complete, of the lane's set.
  __device__ void gather(float (&du)[kSets][kOwn]) const {
#pragma unroll
    for (int m = kSets / 2; m > 0; m /= 2) {
      const bool upper = (set & m) != 0;
#pragma unroll
      for (int i = 0; i < m * kOwn; ++i) {
        float &low = du[i / kOwn][i % kOwn], &high = du[i / kOwn + m][i % kOwn];
        const float sent = upper ? low : high;
        low = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, sent, m * kSharers);
      }
    }
  }

  // What the way through dt needs of the lane's row: the columns that the lane ends with, and its share of all columns: kOwn
  // times kSlices neighbours. Where a warp has all columns, the share is just those.
  struct Own {
    T u[kOwn], ddelta[kOwn];
    Pack<T, G::kSlices> u_share[kOwn], ddelta_share[kOwn];
  };
  __device__ int share(int i) const {
    return G::kSlices == 1 ? column(0) + 2 * i : quad % kSharers * (kE / kSharers) + i * G::kSlices;
  }
  // row: first element of the row.
  __device__ Own load_own(int64_t row) const {
    Own own;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      own.u[i] = tensors.u[row + column(0) + 2 * i];
      own.ddelta[i] = tensors.ddelta[row + column(0) + 2 * i];
      if constexpr (G::kSlices == 1) {
        own.u_share[i].values[0] = own.u[i];
        own.ddelta_share[i].values[0] = own.ddelta[i];
      } else {
        own.u_share[i] = *reinterpret_cast<const Pack<T, G::kSlices>*>(tensors.u + row + share(i));
        own.ddelta_share[i] = *reinterpret_cast<const Pack<T, G::kSlices>*>(tensors.ddelta + row + share(i));
      }
    }
    return own;
  }
  __device__ void finish(const Own& own, const float (&du)[kOwn], int64_t row, bool exists) {
    float dt[kRank] = {}, ddt[kRank] = {};
#pragma unroll
    for (int i = 0; i < kOwn * G::kSlices; ++i) {
      const int piece = i / G::kSlices, k = i % G::kSlices;
      const auto weights = shared.ranks[share(piece) + k];
#pragma unroll
      for (int r = 0; r < kRank; ++r) {
        dt[r] = fmaf(to_float(own.u_share[piece].values[k]), weights.to_dt[r], dt[r]);
        ddt[r] = fmaf(to_float(own.ddelta_share[piece].values[k]), weights.from_dt[r], ddt[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < kRank; ++r) {
#pragma unroll
      for (int mask = 1; mask < kSharers; mask *= 2) {
        dt[r] += __shfl_xor_sync(0xffffffffu, dt[r], mask);
        ddt[r] += __shfl_xor_sync(0xffffffffu, ddt[r], mask);
      }
      if (!exists) dt[r] = ddt[r] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const auto weights = shared.ranks[column(0) + 2 * i];
      float sum = du[i];
#pragma unroll
      for (int r = 0; r < kRank; ++r) {
        sum = fmaf(ddt[r], weights.to_dt[r], sum);
        x_sums[i][r] = fmaf(ddt[r], to_float(own.u[i]), x_sums[i][r]);
        dt_sums[i][r] = fmaf(to_float(own.ddelta[i]), dt[r], dt_sums[i][r]);
      }
      if (exists) tensors.du_proj[row + column(0) + 2 * i] = from_float<T>(sum);
    }
  }

  __device__ void run(int64_t rows) {
    const auto rows_from = [rows](int64_t row) {
      return static_cast<int>(max(int64_t{0}, min(int64_t{G::kStepRows}, rows - row)));
    };
    const int64_t stride = int64_t{gridDim.x} * (G::kStrands * G::kStepRows);
    int64_t first = (int64_t{blockIdx.x} * G::kStrands + threadIdx.x / kWarp / G::kSlices) * G::kStepRows;
    const float* next_pairs = tensors.pairs + (first + side) * kPairs + quad * kQuad;  // of the lane's row of set 0
    const T* next_u = tensors.u + (first + side) * kE + near;
    int count = rows_from(first);
#pragma unroll
    for (int s = 0; s < kSets && count > 0; ++s) load(s, next_pairs, next_u, count);
    for (; count > 0; first += stride) {
      const int row = set * kSide + side, left = rows_from(first + stride);
      const int64_t at = (first + min(row, count - 1)) * kE;
      const Own own = load_own(at);
      float du[kSets][kOwn];
      if (left > 0) {  // after the last step, its rows are loaded again, for nothing: no branches between the products
        next_pairs += stride * kPairs;
        next_u += stride * kE;
      }
#pragma unroll
      for (int s = 0; s < kSets; ++s) {
        multiply(s, du[s]);
        load(s, next_pairs, next_u, left > 0 ? left : count);
      }
      gather(du);
      finish(own, du[0], at, row < count);
      count = left;
    }
  }

  // The warp's sums to shared memory.
  __device__ void store() const {
    auto& out = shared.sums[threadIdx.x / kWarp / G::kSlices];
#pragma unroll
    for (int i = 0; i < kQuad * kColumns; ++i) {
      const float sum = lane_sum<kLanes>(sums[i / kColumns][i % kColumns]);
      if (side == 0) out[quad * kQuad + i / kColumns][column(i % kColumns)] = sum;
    }
#pragma unroll
    for (int i = 0; i < kOwn * kRank; ++i) {
      const int k = i / kRank, r = i % kRank;
      const float x = lane_sum<kSharers>(x_sums[k][r]), dt = lane_sum<kSharers>(dt_sums[k][r]);
      if (lane < kSharers) {
        out[kPairs + r][column(k)] = x;
        out[kPairs + kRank + r][column(k)] = dt;
      }
    }
  }
};

template <typename T, int kE, int kRank>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T, kE, kRank>)
    block_project_grad_kernel(const __grid_constant__ Tensors<T> tensors) {
  __shared__ Shared<kE, kRank> shared;
  const Direction<T> direction = blockIdx.y == 0 ? tensors.direction[0] : tensors.direction[1];
  shared.load(direction.x_proj, direction.dt_weight, tensors.dt_rank);
  __syncthreads();
  Walk<T, kE, kRank> walk(direction, shared, tensors.dt_rank);
  walk.run(tensors.rows);
  walk.store();
  __syncthreads();
  const int columns = tensors.columns(kE);
  shared.write(tensors.dt_rank, columns, tensors.partials + (int64_t{blockIdx.x} * 2 + blockIdx.y) * columns);
}

template <typename Fn>
void dispatch_shape(int64_t d_inner, int64_t dt_rank, Fn&& fn) {
  const auto with_rank = [&]<int kE>() {
    if (dt_rank == 1) return fn.template operator()<kE, 1>();
    if (dt_rank == 2) return fn.template operator()<kE, 2>();
    return fn.template operator()<kE, 4>();
  };
  if (d_inner == 6) return with_rank.template operator()<6>();
  if (d_inner == 12) return with_rank.template operator()<12>();
  if (d_inner == 24) return with_rank.template operator()<24>();
  return with_rank.template operator()<48>();
}

}  // namespace

void project_grad_narrow(const Sequences& s, const MambaBlockArgs& args, const Projected (&rows)[2],
                         const ScanGrads& scan_grads, void* const (&du_proj)[2], const MambaDirectionGradArgs (&out)[2],
                         Stream stream) {
  dispatch_float(args.dtype, [&]<typename T>() {
    Tensors<T> t{};
    for (int p = 0; p < 2; ++p) {
      t.direction[p] = {scan_grads.pairs[p],
                        static_cast<const T*>(rows[p].u),
                        static_cast<const T*>(scan_grads.ddelta[p]),
                        static_cast<T*>(du_proj[p]),
                        static_cast<const float*>(args.direction[p].x_proj),
                        static_cast<const float*>(args.direction[p].dt_weight)};
    }
    t.rows = s.rows();
    t.dt_rank = static_cast<int>(args.dt_rank);
    dispatch_shape(args.d_inner, args.dt_rank, [&]<int kE, int kRank>() {
      using G = Geometry<kE>;
      const int64_t blocks = std::min(ceil_div(t.rows, G::kStrands * G::kStepRows), kMaxBlocks);
      const Scratch<float> partials(stream, blocks * 2 * t.columns(kE));
      t.partials = partials.get();
      block_project_grad_kernel<T, kE, kRank><<<dim3(static_cast<unsigned>(blocks), 2), kThreads, 0, raw(stream)>>>(t);
      PM_CHECK_LAUNCH("block_project_grad");
      const int64_t x_proj = (t.dt_rank + kPairs) * kE, dt_weight = t.dt_rank * kE;
      ColumnRanges sums{{}, {x_proj, dt_weight, x_proj, dt_weight}};
      for (int p = 0; p < 2; ++p) {
        sums.out[2 * p] = static_cast<float*>(out[p].x_proj);
        sums.out[2 * p + 1] = static_cast<float*>(out[p].dt_weight);
      }
      column_sum(partials.get(), blocks, sums, stream);
    });
  });
}

}  // namespace pm::cuda::block
