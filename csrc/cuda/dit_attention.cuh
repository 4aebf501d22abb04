// What the attention's kernels share: the preparation of a head by a warp and the way back, and tiles of scores.
//
// A warp holds a head's features in registers, feature lane + 32 i in x[i], and exchanges partners of the rotation
// through a row of shared memory.
#pragma once

#include <cmath>

#include "cuda/dit_attention.h"
#include "cuda/rows.cuh"
#include "cuda/tile_product.cuh"

namespace losatok::cuda {

constexpr int kAttentionRows = 64;  // rows of a block
constexpr int kAttentionWarps = 4;
constexpr int kAttentionThreads = kAttentionWarps * kWarp;
constexpr int kWarpRows = kAttentionRows / kAttentionWarps;

// How many rows of the other side a block takes at a time: what registers and shared memory allow.
template <typename T>
constexpr int kOtherRows = sizeof(T) == 4 ? 32 : 64;
template <typename T, int kHead>
constexpr int kOtherQueries = kHead > 64 ? 32 : kOtherRows<T>;  // of the keys' gradient, which holds two sums

// A head of kHead features in a warp.
template <int kHead>
constexpr int kPerLane = ceil_div(kHead, kWarp);

template <int kHead>
using HeadRow = float[kPerLane<kHead>];

__device__ __forceinline__ int lane_feature(int i) { return static_cast<int>(threadIdx.x) % kWarp + i * kWarp; }

// Zeros past head_size.
template <int kHead, typename T>
__device__ __forceinline__ void load_head(const T* row, int64_t head_size, float (&x)[kPerLane<kHead>]) {
#pragma unroll
  for (int i = 0; i < kPerLane<kHead>; ++i) {
    const int c = lane_feature(i);
    x[i] = c < head_size ? to_float(row[c]) : 0.f;
  }
}

template <int kHead>
__device__ __forceinline__ float head_sum(const float (&x)[kPerLane<kHead>]) {
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < kPerLane<kHead>; ++i) sum += x[i];
  return warp_sum(sum);
}

// x over its root mean square, less its mean before for kLayer; returns what it was multiplied by.
template <int kHead>
__device__ __forceinline__ float normalize_head(const Preparation& p, int64_t head_size, float (&x)[kPerLane<kHead>]) {
  if (p.norm == HeadNorm::kNone) return 1.f;
  const float share = 1.f / static_cast<float>(head_size);
  if (p.norm == HeadNorm::kLayer) {
    const float mean = head_sum<kHead>(x) * share;
#pragma unroll
    for (int i = 0; i < kPerLane<kHead>; ++i) x[i] = lane_feature(i) < head_size ? x[i] - mean : 0.f;
  }
  float squares[kPerLane<kHead>];
#pragma unroll
  for (int i = 0; i < kPerLane<kHead>; ++i) squares[i] = x[i] * x[i];
  const float inverse = 1.f / sqrtf(head_sum<kHead>(squares) * share + p.eps);
#pragma unroll
  for (int i = 0; i < kPerLane<kHead>; ++i) x[i] *= inverse;
  return inverse;
}

template <int kHead>
__device__ __forceinline__ void multiply_by_weight(const Preparation& p, int64_t head_size,
                                                   float (&x)[kPerLane<kHead>]) {
  if (p.weight == nullptr) return;
#pragma unroll
  for (int i = 0; i < kPerLane<kHead>; ++i) {
    const int c = lane_feature(i);
    if (c < head_size) x[i] *= p.weight[c];
  }
}

// Pairs (a, b) of x turned by the angles of `frame` to (a cos - b sin, b cos + a sin); kBack: turned back. `row` is
// shared memory that holds x.
template <int kHead, bool kBack>
__device__ __forceinline__ void turn_head(const Preparation& p, int64_t frame, const float* row,
                                          float (&x)[kPerLane<kHead>]) {
  const int rotary = static_cast<int>(p.rotary), pairs = rotary / 2;
#pragma unroll
  for (int i = 0; i < kPerLane<kHead>; ++i) {
    const int c = lane_feature(i);
    if (c >= rotary) continue;
    const bool first = p.interleaved ? c % 2 == 0 : c < pairs;
    const int pair = p.interleaved ? c / 2 : (first ? c : c - pairs);
    const int partner = p.interleaved ? c ^ 1 : (first ? c + pairs : c - pairs);
    const float sine = p.sin[frame * pairs + pair];
    x[i] = fmaf(row[partner], first != kBack ? -sine : sine, x[i] * p.cos[frame * pairs + pair]);
  }
}

// A whole preparation; `scratch` is a row of kHead floats of the warp's own.
template <int kHead>
__device__ __forceinline__ void prepare_head(const Preparation& p, int64_t head_size, int64_t frame, float* scratch,
                                             float (&x)[kPerLane<kHead>]) {
  normalize_head<kHead>(p, head_size, x);
  multiply_by_weight<kHead>(p, head_size, x);
  if (p.rotary == 0) return;  // for the whole grid
#pragma unroll
  for (int i = 0; i < kPerLane<kHead>; ++i) {
    if (lane_feature(i) < kHead) scratch[lane_feature(i)] = x[i];
  }
  __syncwarp();
  turn_head<kHead, false>(p, frame, scratch, x);
  __syncwarp();
}

// From the gradient by a prepared head to that by the head `row`, and what it adds to the weight's gradient. `scratch`
// holds the gradient that comes in.
template <int kHead, typename T>
__device__ __forceinline__ void prepare_head_backward(const Preparation& p, int64_t head_size, int64_t frame,
                                                      const T* row, const float* scratch,
                                                      float (&grad)[kPerLane<kHead>],
                                                      float (&by_weight)[kPerLane<kHead>]) {
  if (p.rotary != 0) turn_head<kHead, true>(p, frame, scratch, grad);
  if (p.norm == HeadNorm::kNone) return;
  float x[kPerLane<kHead>], products[kPerLane<kHead>];
  load_head<kHead>(row, head_size, x);
  const float inverse = normalize_head<kHead>(p, head_size, x), share = 1.f / static_cast<float>(head_size);
#pragma unroll
  for (int i = 0; i < kPerLane<kHead>; ++i) by_weight[i] = fmaf(grad[i], x[i], by_weight[i]);
  multiply_by_weight<kHead>(p, head_size, grad);
#pragma unroll
  for (int i = 0; i < kPerLane<kHead>; ++i) products[i] = grad[i] * x[i];
  const float along = head_sum<kHead>(products) * share;
  const float mean = p.norm == HeadNorm::kLayer ? head_sum<kHead>(grad) * share : 0.f;
#pragma unroll
  for (int i = 0; i < kPerLane<kHead>; ++i) grad[i] = inverse * (grad[i] - mean - x[i] * along);
}

// Which head and rows a block has; grid (B * H * blocks of rows).
struct AttentionBlock {
  int64_t b, head, first;
};

__device__ __forceinline__ AttentionBlock attention_block(int64_t rows, int64_t heads) {
  const int64_t blocks = ceil_div<int64_t>(rows, kAttentionRows);
  const int64_t item = blockIdx.x / blocks;
  return {item / heads, item % heads, blockIdx.x % blocks * kAttentionRows};
}

inline bool attention_grid(int64_t batch, int64_t heads, int64_t rows, dim3* grid) {
  const int64_t blocks = batch * heads * ceil_div<int64_t>(rows, kAttentionRows);
  *grid = dim3(static_cast<unsigned>(blocks));
  return fits_grid(blocks);
}

template <typename T>
__device__ __forceinline__ const T* head_start(const Heads& heads, int64_t b, int64_t head) {
  return static_cast<const T*>(heads.data) + b * heads.batch_stride + head * heads.head_stride;
}

// The first `rows` rows of a head; nothing past them, or past head_size, is read.
template <typename T>
__device__ __forceinline__ Matrix<T> head_matrix(const Heads& heads, int64_t b, int64_t head, int64_t rows,
                                                 int64_t head_size) {
  const T* data = head_start<T>(heads, b, head);
  const bool vectors =
      reinterpret_cast<uintptr_t>(data) % 16 == 0 && heads.row_stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  return {data, rows, head_size, heads.row_stride, vectors};
}

// A tile of rows of heads in shared memory, and one of scores. Rows of scores are eight banks apart: eight lanes go
// along each of four rows without a conflict.
template <typename T, int kRows, int kHead>
using HeadTile = T[kRows][kHead + Staging<T>::kPad];

template <int kOther>
using ScoreTile = float[kAttentionRows][kOther + 8];

template <typename T, int kOther>
using WeightTile = T[kAttentionRows][kOther + Staging<T>::kPad];

template <int kHead>
using SumTile = float[kAttentionRows][kHead + 4];

template <typename T, int kColumns>
using RowsProduct = TileProduct<T, kAttentionRows, kColumns, kAttentionWarps, 1>;

// product += a b^T over kDepth columns, both in shared memory; with kColumnsB a b over kDepth rows of b.
template <bool kColumnsB, int kDepth, typename Product, typename T, int kStrideA, int kStrideB, int kRowsA, int kRowsB>
__device__ __forceinline__ void add_product(Product& product, const T (&a)[kRowsA][kStrideA],
                                            const T (&b)[kRowsB][kStrideB]) {
#pragma unroll(sizeof(T) == 4 ? 1 : 2)  // more would hold operands of several steps in registers
  for (int k = 0; k < kDepth; k += 16) {
    product.template step<kColumnsB, 16>(&a[0][k], kStrideA, kColumnsB ? &b[k][0] : &b[0][k], kStrideB);
  }
}

// A lane's entries of a tile of scores: entry j of its row i, eight lanes to a row.
constexpr int kLanesPerRow = 8;
constexpr int kRowsPerLane = kWarpRows * kLanesPerRow / kWarp;
template <int kOther>
constexpr int kEntriesPerRow = kOther / kLanesPerRow;

__device__ __forceinline__ int score_row(int i) {
  const int lane = threadIdx.x % kWarp;
  return static_cast<int>(threadIdx.x) / kWarp * kWarpRows + i * (kWarp / kLanesPerRow) + lane / kLanesPerRow;
}

__device__ __forceinline__ int score_column(int j) {
  return static_cast<int>(threadIdx.x) % kLanesPerRow + j * kLanesPerRow;
}

template <int kOther>
using Entries = float[kRowsPerLane][kEntriesPerRow<kOther>];

// to [B, rows, H, h] = change(r, sums[r][c]) for the block's rows below `rows`.
template <typename T, int kHead, typename Change>
__device__ __forceinline__ void store_rows(const SumTile<kHead>& sums, const AttentionBlock& at, int64_t rows,
                                           int64_t heads, int64_t head_size, void* to, Change&& change) {
  T* own = static_cast<T*>(to) + ((at.b * rows + at.first) * heads + at.head) * head_size;
  const bool four = head_size % 4 == 0 && reinterpret_cast<uintptr_t>(to) % sizeof(Four<T>) == 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < kAttentionRows * (kHead / 4); i += kAttentionThreads) {
    const int r = i / (kHead / 4), c = i % (kHead / 4) * 4;
    if (at.first + r >= rows || c >= head_size) continue;
    float x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = change(r, sums[r][c + j]);
    store_four(own + r * heads * head_size, c, head_size, four, x);
  }
}

template <typename Body>
cudaError_t for_head_size(int64_t head_size, Body&& body) {
  if (head_size < 1 || head_size > kMaxHeadSize) return cudaErrorInvalidValue;
  if (head_size <= 32) return body.template operator()<32>();
  if (head_size <= 64) return body.template operator()<64>();
  if (head_size <= 80) return body.template operator()<80>();
  if (head_size <= 96) return body.template operator()<96>();
  return body.template operator()<128>();
}

// 1 / sqrt(h) with exponentials taken in powers of two.
inline float score_scale(int64_t head_size) { return 1.4426950408889634f / std::sqrt(static_cast<float>(head_size)); }

}  // namespace losatok::cuda
