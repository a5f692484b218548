// linear for the widths of the narrow Mamba blocks (3, 6, 12, 24 channels, twice as many inside), compiled for each of them.
//
// rows_linear_kernel: y[row, n] = addend[row, n] + sum over k of x[row, k] * matrix(n, k), as in small_linear_kernel. A lane owns
//   units of neighbouring rows (lane_rows.cuh): x in registers, the weights float32 in shared memory, each float4 of them read once
//   for all rows of the unit. Warps work alone: no barrier after the weights are there.
//   launch  : kRowThreads threads, 1 to kRowGrid blocks, warps loop over tiles of 32 units
//   traffic : (k + n) * sizeof(T) bytes a row, and n * sizeof(T) of the addend; 144 bytes of a lane in flight (288 at 48 columns).
//             6 -> 3 bfloat16 with addend: 24 bytes a row, 20 M rows 113 us at 4.25 TB/s. 18 to 1,152 products a row; at
//             24 <-> 48 columns they take as long as the bytes
//   shared  : at most 45 KiB
// rows_grad_weight_kernel: partials[block, n, k] = sum over the block's rows of dout[row, n] * x[row, k]; column_sum adds the blocks.
//   A lane owns a piece of the product, all of it up to 72 values, else 12 x 6, and every strands-th unit of a tile; strands are
//   added by shuffles, warps in order.
//   launch  : kRowThreads threads, 1 to kRowGradGrid blocks
//   traffic : (k + n) * sizeof(T) bytes a row; shared at most 40 KiB
// Base addresses that are no multiple of 16 bytes, and the last tile, go element by element.
// numerics: float32 sums in a fixed order; deterministic: geometry depends on the shape only.
//
// A lane's unit in bfloat16, counted in PTX and by ptxas (words: 16 bytes; weights: float4 from shared memory):
//   linear          rows  words in, out  weights  multiply-adds  registers     grad weight  words in  multiply-adds  registers
//   6 -> 3, addend     8          9,  3        6            144        127     6 x 3               9            144         64
//   12 -> 6            4          9,  3       18            288        127     12 x 6              9            288        126
//   24 -> 12           2          9,  3       72            576        135     24 x 12             9            144        125
//   48 -> 24           2         18,  6      288          2,304        168     48 x 24            18            144        140
//   3 -> 6             8          3,  6        6            144        128     3 x 6 + 6          15            288         80
//   6 -> 12            4          3,  6       24            288        128     6 x 12 + 12        15            288        128
//   12 -> 24           2          3,  6       72            576        167     12 x 24 + 24       15            144        126
//   24 -> 48           2          6, 12      288          2,304        168     (multiply-adds: of the lane's piece)
//   6 + 6 -> 3         8         12,  3        9            288        168
//   12 + 12 -> 6       4         12,  3       36            576        168
//   24 + 24 -> 12      2         12,  3      144          1,152        168
#pragma once
#include "cuda/gemm/lane_rows.cuh"
#include "cuda/gemm/linear_small.cuh"

namespace pm::cuda::small {

constexpr int kRowThreads = 128, kRowWarps = kRowThreads / kWarp;
constexpr int64_t kRowGrid = 132 * 16, kRowGradGrid = 132 * 4;
constexpr size_t kMostShared = 48 << 10;  // what any block may have

// in: kGroups tensors of kColumns columns; out: kOut columns.
template <typename T, int kGroups, int kColumns, int kOut>
struct RowsProduct {
  static constexpr int kIn = kGroups * kColumns, kPaddedIn = (kIn + 3) / 4 * 4;
  static constexpr int kRows = kUnitRows<T, std::max(kColumns, kOut)>;
  using In = LaneRows<T, kColumns, kRows>;
  using Out = LaneRows<T, kOut, kRows>;
  static constexpr int kWordElements = Out::kWordElements;
  // All outputs of a unit at once while that is little code, else a word of each row.
  static constexpr bool kAtOnce = kRows * kIn * kOut <= 600 || kOut % kWordElements != 0;
  static constexpr int kChunk = kAtOnce ? kOut : kWordElements;
  static constexpr int kMinBlocks = kRows * (kIn + kChunk) > 100 ? 3 : 0;  // of a multiprocessor; 0: as it comes

  In in[kGroups];
  Out out;

  __device__ __forceinline__ void load(const Groups<const T>& x, const T* addend, int64_t row0, int n_rows,
                                       bool whole_words) {
    const T* rest = addend + row0 * kOut;
    if (whole_words) {
      uint4 held[kGroups][In::kWords], held_rest[Out::kWords];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) In::fetch(x.data[g] + row0 * kColumns, held[g]);
      if (addend != nullptr) Out::fetch(rest, held_rest);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) in[g].put(held[g]);
      if (addend != nullptr) out.put(held_rest);
    } else {
      for (int g = 0; g < kGroups; ++g) in[g].copy_in(x.data[g] + row0 * kColumns, n_rows);
      if (addend != nullptr) out.copy_in(rest, n_rows);
    }
  }

  // The lane's unit of `out`, where its addends lie if `adds`. weights: (kOut, kPaddedIn)
  __device__ __forceinline__ void multiply(const float* weights, bool adds) {
    const int lane = In::lane();
    float x[kRows][kIn];
#pragma unroll
    for (int g = 0; g < kGroups; ++g) in[g].template read<kColumns>(lane, 0, x, g * kColumns);
    auto* unit = reinterpret_cast<typename Out::Word*>(out.unit(lane));
#pragma unroll 1
    for (int n0 = 0; n0 < kOut; n0 += kChunk) {
      float y[kRows * kChunk];
      constexpr int kWords = kRows * kChunk / kWordElements;
      const auto place = [n0](int word) { return kAtOnce ? word : (word * kOut + n0) / kWordElements; };
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        typename Out::Word word{};
        if (adds) word = unit[place(w)];
#pragma unroll
        for (int i = 0; i < kWordElements; ++i) y[w * kWordElements + i] = to_float(word.values[i]);
      }
#pragma unroll
      for (int n = 0; n < kChunk; ++n) {
        const auto* row_weights = reinterpret_cast<const float4*>(weights + (n0 + n) * kPaddedIn);
#pragma unroll
        for (int k = 0; k < kIn; k += 4) {
          const float4 w4 = row_weights[k / 4];
          const float w[4] = {w4.x, w4.y, w4.z, w4.w};
#pragma unroll
          for (int i = 0; i < 4 * kRows; ++i) {
            const int row = i % kRows, j = i / kRows;
            if (k + j < kIn) y[row * kChunk + n] = fmaf(x[row][k + j], w[j], y[row * kChunk + n]);
          }
        }
      }
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        typename Out::Word word;
#pragma unroll
        for (int i = 0; i < kWordElements; ++i) word.values[i] = from_float<T>(y[w * kWordElements + i]);
        unit[place(w)] = word;
      }
    }
  }
};

// addend: (rows, kOut) or null; may be out. A lane group reads a tile of it before it writes that tile.
template <typename T, int kGroups, int kColumns, int kOut>
__global__ void __launch_bounds__(kRowThreads, RowsProduct<T, kGroups, kColumns, kOut>::kMinBlocks)
    rows_linear_kernel(const __grid_constant__ Groups<const T> in, const float* __restrict__ matrix, int64_t stride_n,
                       int64_t stride_k, const T* addend, T* out, int64_t rows) {
  using Product = RowsProduct<T, kGroups, kColumns, kOut>;
  extern __shared__ uint4 row_memory[];
  auto* products = reinterpret_cast<Product*>(row_memory);
  Product& mine = products[threadIdx.x / kWarp];
  auto* weights = reinterpret_cast<float*>(products + kRowWarps);  // (kOut, kPaddedIn)
  for (int i = threadIdx.x; i < kOut * Product::kPaddedIn; i += kRowThreads) {
    const int n = i / Product::kPaddedIn, k = i % Product::kPaddedIn;
    weights[i] = k < Product::kIn ? matrix[n * stride_n + k * stride_k] : 0.0f;
  }
  __syncthreads();
  bool words_in = addend == nullptr || at_word(addend);
  for (int g = 0; g < kGroups; ++g) words_in = words_in && at_word(in.data[g]);
  const bool words_out = at_word(out);
  constexpr int kTileRows = Product::In::kTileRows;
  const int64_t step = int64_t{gridDim.x} * kRowWarps * kTileRows;
  for (int64_t row0 = (int64_t{blockIdx.x} * kRowWarps + threadIdx.x / kWarp) * kTileRows; row0 < rows; row0 += step) {
    const int n_rows = static_cast<int>(min(int64_t{kTileRows}, rows - row0));
    mine.load(in, addend, row0, n_rows, words_in && n_rows == kTileRows);
    __syncwarp();
    mine.multiply(weights, addend != nullptr);
    __syncwarp();
    mine.out.copy_out(out + row0 * kOut, n_rows, words_out && n_rows == kTileRows);
    __syncwarp();  // the next tile takes the place of this one
  }
}

// dout: kGroups tensors of kColumns columns, together kOut; x: kIn columns.
template <typename T, int kGroups, int kColumns, int kIn>
struct RowsGrad {
  static constexpr int kOut = kGroups * kColumns;
  static constexpr int kRows = kUnitRows<T, std::max(kColumns, kIn)>;
  static constexpr bool kOnePiece = kOut * kIn <= 72;
  static constexpr int kPieceN = kOnePiece ? kOut : 12, kPieceK = kOnePiece ? kIn : 6;
  static constexpr int kPiecesK = kIn / kPieceK, kPieces = kOut / kPieceN * kPiecesK, kStrands = kWarp / kPieces;
  static_assert(kOut % kPieceN == 0 && kIn % kPieceK == 0 && kPieces * kStrands == kWarp);
  static_assert(kPieceN == kOut || kColumns % kPieceN == 0);
  using Dout = LaneRows<T, kColumns, kRows>;
  using X = LaneRows<T, kIn, kRows>;

  Dout dout[kGroups];
  X x;

  __device__ __forceinline__ void load(const Groups<const T>& douts, const T* source, int64_t row0, int n_rows,
                                       bool whole_words) {
    if (whole_words) {
      uint4 held[kGroups][Dout::kWords], held_x[X::kWords];
#pragma unroll
      for (int g = 0; g < kGroups; ++g) Dout::fetch(douts.data[g] + row0 * kColumns, held[g]);
      X::fetch(source + row0 * kIn, held_x);
#pragma unroll
      for (int g = 0; g < kGroups; ++g) dout[g].put(held[g]);
      x.put(held_x);
    } else {
      for (int g = 0; g < kGroups; ++g) dout[g].copy_in(douts.data[g] + row0 * kColumns, n_rows);
      x.copy_in(source + row0 * kIn, n_rows);
    }
  }

  // Adds the lane's units to its piece of the product, rows [n, n + kPieceN) and columns [k, k + kPieceK).
  __device__ __forceinline__ void add(float (&sum)[kPieceN][kPieceK], int strand, int n, int k) {
#pragma unroll 1
    for (int unit = strand; unit < kWarp; unit += kStrands) {
      float d[kRows][kPieceN], v[kRows][kPieceK];
      if constexpr (kPieceN > kColumns) {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) dout[g].template read<kColumns>(unit, 0, d, g * kColumns);
      } else {
        dout[n / kColumns].template read<kPieceN>(unit, n % kColumns, d, 0);
      }
      x.template read<kPieceK>(unit, k, v, 0);
#pragma unroll
      for (int i = 0; i < kRows * kPieceN * kPieceK; ++i) {
        const int row = i / (kPieceN * kPieceK), a = i / kPieceK % kPieceN, b = i % kPieceK;
        sum[a][b] = fmaf(d[row][a], v[row][b], sum[a][b]);
      }
    }
  }
};

// partials: (gridDim.x, kOut, kIn)
template <typename T, int kGroups, int kColumns, int kIn>
__global__ void __launch_bounds__(kRowThreads)
    rows_grad_weight_kernel(const __grid_constant__ Groups<const T> dout, const T* __restrict__ x, int64_t rows,
                            float* __restrict__ partials) {
  using Grad = RowsGrad<T, kGroups, kColumns, kIn>;
  constexpr int kSize = Grad::kOut * kIn, kTileRows = Grad::X::kTileRows;
  static_assert(kRowWarps * kSize * sizeof(float) <= kRowWarps * sizeof(Grad));
  extern __shared__ uint4 row_memory[];
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  Grad& mine = reinterpret_cast<Grad*>(row_memory)[warp];
  const int piece = lane % Grad::kPieces, strand = lane / Grad::kPieces;
  const int n = piece / Grad::kPiecesK * Grad::kPieceN, k = piece % Grad::kPiecesK * Grad::kPieceK;
  bool words = at_word(x);
  for (int g = 0; g < kGroups; ++g) words = words && at_word(dout.data[g]);

  float sum[Grad::kPieceN][Grad::kPieceK] = {};
  const int64_t step = int64_t{gridDim.x} * kRowWarps * kTileRows;
  for (int64_t row0 = (int64_t{blockIdx.x} * kRowWarps + warp) * kTileRows; row0 < rows; row0 += step) {
    const int n_rows = static_cast<int>(min(int64_t{kTileRows}, rows - row0));
    mine.load(dout, x, row0, n_rows, words && n_rows == kTileRows);
    __syncwarp();
    mine.add(sum, strand, n, k);
    __syncwarp();  // the next tile takes the place of this one
  }
  __syncthreads();                                        // and the sums that of all tiles
  auto* combined = reinterpret_cast<float*>(row_memory);  // (kRowWarps, kOut, kIn)
#pragma unroll
  for (int i = 0; i < Grad::kPieceN * Grad::kPieceK; ++i) {
    const int a = i / Grad::kPieceK, b = i % Grad::kPieceK;
    float total = sum[a][b];
#pragma unroll
    for (int offset = Grad::kPieces; offset < kWarp; offset *= 2) total += __shfl_xor_sync(0xffffffffu, total, offset);
    if (strand == 0) combined[warp * kSize + (n + a) * kIn + k + b] = total;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSize; i += kRowThreads) {
    float total = combined[i];
    for (int w = 1; w < kRowWarps; ++w) total += combined[w * kSize + i];
    partials[int64_t{blockIdx.x} * kSize + i] = total;
  }
}

// ---------------------------------------------------------------- launches
// fn<groups, columns, out>() for the widths of out_proj, its gradient of the input, and that of in_proj; false for others. fn says
// whether it does them.
template <typename Fn>
bool dispatch_rows(int groups, int columns, int out, Fn&& fn) {
  const auto is = [&](int g, int c, int o) { return groups == g && columns == c && out == o; };
  if (is(1, 6, 3)) return fn.template operator()<1, 6, 3>();
  if (is(1, 12, 6)) return fn.template operator()<1, 12, 6>();
  if (is(1, 24, 12)) return fn.template operator()<1, 24, 12>();
  if (is(1, 48, 24)) return fn.template operator()<1, 48, 24>();
  if (is(1, 3, 6)) return fn.template operator()<1, 3, 6>();
  if (is(1, 6, 12)) return fn.template operator()<1, 6, 12>();
  if (is(1, 12, 24)) return fn.template operator()<1, 12, 24>();
  if (is(1, 24, 48)) return fn.template operator()<1, 24, 48>();
  if (is(2, 6, 3)) return fn.template operator()<2, 6, 3>();
  if (is(2, 12, 6)) return fn.template operator()<2, 12, 6>();
  if (is(2, 24, 12)) return fn.template operator()<2, 24, 12>();
  return false;
}

// The columns of every group, 0 where they differ.
template <typename T>
int equal_columns(const Groups<T>& groups) {
  for (int g = 1; g < groups.count; ++g) {
    if (groups.columns[g] != groups.columns[0]) return 0;
  }
  return groups.columns[0];
}

// False where the widths are others: nothing is done then.
template <typename T>
bool rows_linear(const Groups<const T>& in, const float* matrix, int64_t stride_n, int64_t stride_k,
                 const Groups<T>& out, int64_t rows, Stream stream) {
  if (out.count != 1) return false;
  return dispatch_rows(in.count, equal_columns(in), out.columns[0], [&]<int kGroups, int kColumns, int kOut>() {
    using Product = RowsProduct<T, kGroups, kColumns, kOut>;
    constexpr size_t kShared = kRowWarps * sizeof(Product) + kOut * Product::kPaddedIn * sizeof(float);
    static_assert(kShared <= kMostShared);
    const auto blocks = std::min(ceil_div(rows, int64_t{kRowWarps} * Product::In::kTileRows), kRowGrid);
    rows_linear_kernel<T, kGroups, kColumns, kOut>
        <<<static_cast<unsigned>(blocks), kRowThreads, kShared, raw(stream)>>>(in, matrix, stride_n, stride_k,
                                                                               out.addend[0], out.data[0], rows);
    PM_CHECK_LAUNCH("rows_linear");
    return true;
  });
}

// The same for dweight (n_out, n_in) of out_proj and in_proj; rows > 0
template <typename T>
bool rows_grad_weight(const Groups<const T>& dout, const T* x, int64_t rows, int n_in, float* dweight, Stream stream) {
  return dispatch_rows(dout.count, equal_columns(dout), n_in, [&]<int kGroups, int kColumns, int kIn>() {
    if constexpr (kGroups == 1 && kColumns > kIn) {
      return false;
    } else {
      using Grad = RowsGrad<T, kGroups, kColumns, kIn>;
      constexpr size_t kShared = kRowWarps * sizeof(Grad);
      static_assert(kShared <= kMostShared);
      const int64_t blocks = std::min(ceil_div(rows, int64_t{kRowWarps} * Grad::X::kTileRows), kRowGradGrid);
      const Scratch<float> partials(stream, blocks * Grad::kOut * kIn);
      rows_grad_weight_kernel<T, kGroups, kColumns, kIn>
          <<<static_cast<unsigned>(blocks), kRowThreads, kShared, raw(stream)>>>(dout, x, rows, partials.get());
      PM_CHECK_LAUNCH("rows_grad_weight");
      column_sum(partials.get(), blocks, int64_t{Grad::kOut} * kIn, dweight, stream);
      return true;
    }
  });
}

}  // namespace pm::cuda::small
