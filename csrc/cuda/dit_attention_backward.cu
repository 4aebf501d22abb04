// The attention's gradients, without atomics: one kernel holds 64 queries of a head and goes over its keys, the other
// holds 64 keys and goes over the queries. Scores and their gradients exist one tile at a time.
#include "cuda/dit_attention.cuh"

namespace losatok::cuda {
namespace {

// `own`: what the block holds, `other`: what it goes over; of queries or keys, and of grad or values.
template <typename T, int kHead, int kOther>
struct GradientShared {
  HeadTile<T, kAttentionRows, kHead> own, own_pair;
  union {  // used in turn, with barriers between
    struct {
      HeadTile<T, kOther, kHead> other, other_pair;
    };
    SumTile<kHead> sums;
  };
  ScoreTile<kOther> scores;
  WeightTile<T, kOther> weights;
  float lse[kAttentionRows];
  float delta[kAttentionRows];
  float by_weight[kAttentionWarps][kHead];
};

// What a lane has of a tile of scores, to registers.
template <int kOther>
__device__ __forceinline__ void load_entries(const ScoreTile<kOther>& scores, Entries<kOther>& entries) {
#pragma unroll
  for (int i = 0; i < kRowsPerLane; ++i)
#pragma unroll
    for (int j = 0; j < kEntriesPerRow<kOther>; ++j) entries[i][j] = scores[score_row(i)][score_column(j)];
}

template <typename T, int kOther>
__device__ __forceinline__ void store_weights(const Entries<kOther>& entries, WeightTile<T, kOther>& weights) {
#pragma unroll
  for (int i = 0; i < kRowsPerLane; ++i)
#pragma unroll
    for (int j = 0; j < kEntriesPerRow<kOther>; ++j)
      weights[score_row(i)][score_column(j)] = from_float<T>(entries[i][j]);
}

// lse, in powers of two, and delta of kCount queries from `first` on. Those past the length get infinity and 0, so that
// their weights are 0.
template <int kCount>
__device__ __forceinline__ void load_row_sums(const AttentionGradient& p, const AttentionBlock& at, int64_t first,
                                              int64_t length, float* lse, float* delta) {
  const int64_t start = (at.b * p.heads + at.head) * p.queries.time + first;
  for (int i = threadIdx.x; i < kCount; i += kAttentionThreads) {
    const bool valid = first + i < length;
    lse[i] = valid ? p.lse[start + i] * 1.4426950408889634f : INFINITY;
    delta[i] = valid ? p.delta[start + i] : 0.f;
  }
}

// The gradient by prepared rows, in shared.sums, goes back through the preparation a warp per row, in place; then what
// the block adds to the weight's gradient, in a fixed order, and the rows. Every thread of the block calls it.
template <typename T, int kHead, int kOther>
__device__ __forceinline__ void finish_gradient(GradientShared<T, kHead, kOther>& shared, const AttentionGradient& p,
                                                const AttentionBlock& at, const Frames& frames, int64_t length,
                                                float factor) {
  const int warp = threadIdx.x / kWarp;
  float by_weight[kPerLane<kHead>] = {};
  for (int r = warp * kWarpRows; r < (warp + 1) * kWarpRows; ++r) {
    const int64_t row = at.first + r;
    if (row >= length) break;  // a whole warp
    float grad[kPerLane<kHead>];
    load_head<kHead>(shared.sums[r], kHead, grad);
    prepare_head_backward<kHead>(p.preparation, p.head_size, row,
                                 head_start<T>(p.x, at.b, at.head) + row * p.x.row_stride, shared.sums[r], grad,
                                 by_weight);
    __syncwarp();  // partners were read
#pragma unroll
    for (int i = 0; i < kPerLane<kHead>; ++i) {
      if (lane_feature(i) < kHead) shared.sums[r][lane_feature(i)] = grad[i];
    }
  }
  if (p.weight_parts != nullptr) {  // for the whole grid
#pragma unroll
    for (int i = 0; i < kPerLane<kHead>; ++i) {
      if (lane_feature(i) < kHead) shared.by_weight[warp][lane_feature(i)] = by_weight[i];
    }
    __syncthreads();
    for (int64_t c = threadIdx.x; c < p.head_size; c += kAttentionThreads) {
      float sum = 0.f;
#pragma unroll
      for (int w = 0; w < kAttentionWarps; ++w) sum += shared.by_weight[w][c];
      p.weight_parts[blockIdx.x * p.head_size + c] = sum * factor;
    }
  }
  __syncthreads();
  store_rows<T, kHead>(shared.sums, at, frames.time, p.heads, p.head_size, p.grad_x,
                       [&](int r, float x) { return at.first + r < length ? x * factor : 0.f; });
}

template <typename T, int kHead>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    query_gradient_kernel(const AttentionGradient p, float scale, float factor) {
  using Shared = GradientShared<T, kHead, kOtherRows<T>>;
  LOSATOK_SHARED(Shared, shared);
  constexpr int kKeys = kOtherRows<T>;
  const AttentionBlock at = attention_block(p.queries.time, p.heads);
  const int64_t length = valid_length(p.queries, at.b);
  const int64_t keys = at.first < length ? valid_length(p.keys, at.b) : 0, tiles = ceil_div<int64_t>(keys, kKeys);
  const Matrix<T> q = head_matrix<T>(p.ready, at.b, at.head, length, p.head_size);
  const Matrix<T> g = head_matrix<T>(p.grad, at.b, at.head, length, p.head_size);
  const Matrix<T> k = head_matrix<T>(p.other, at.b, at.head, keys, p.head_size);
  const Matrix<T> v = head_matrix<T>(p.v, at.b, at.head, keys, p.head_size);
  stage_tile<kAttentionThreads, kAttentionRows, kHead>(shared.own, q, at.first, 0);
  stage_tile<kAttentionThreads, kAttentionRows, kHead>(shared.own_pair, g, at.first, 0);
  load_row_sums<kAttentionRows>(p, at, at.first, length, shared.lse, shared.delta);
  const auto stage_values = [&](int64_t tile) {
    if (tile < tiles) stage_tile<kAttentionThreads, kKeys, kHead>(shared.other_pair, v, tile * kKeys, 0);
    async_copy_commit();
  };
  stage_values(0);

  RowsProduct<T, kHead> sums;
  sums.clear();
#pragma unroll 1
  for (int64_t tile = 0; tile < tiles; ++tile) {
    stage_tile<kAttentionThreads, kKeys, kHead>(shared.other, k, tile * kKeys, 0);
    async_copy_commit();
    async_copy_wait<0>();
    __syncthreads();
    const int64_t left = keys - tile * kKeys;
    RowsProduct<T, kKeys> product;
    product.clear();
    add_product<false, kHead>(product, shared.own, shared.other);
    product.store(shared.scores);
    __syncthreads();
    Entries<kKeys> entries;
    load_entries<kKeys>(shared.scores, entries);
    __syncthreads();
    product.clear();
    add_product<false, kHead>(product, shared.own_pair, shared.other_pair);
    product.store(shared.scores);
    __syncthreads();
    stage_values(tile + 1);
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
      const int r = score_row(i);
      const float lse = shared.lse[r], delta = shared.delta[r];
#pragma unroll
      for (int j = 0; j < kEntriesPerRow<kKeys>; ++j) {
        const int c = score_column(j);
        const float weight = c < left ? exp2f(fmaf(entries[i][j], scale, -lse)) : 0.f;
        entries[i][j] = weight * (shared.scores[r][c] - delta);
      }
    }
    store_weights<T, kKeys>(entries, shared.weights);
    __syncthreads();
    add_product<true, kKeys>(sums, shared.weights, shared.other);
    __syncthreads();  // all are done with the keys
  }
  async_copy_wait<0>();  // of an item without a key
  __syncthreads();
  sums.store(shared.sums);
  __syncthreads();
  finish_gradient<T, kHead>(shared, p, at, p.queries, length, factor);
}

template <typename T, int kHead>
__global__ void __launch_bounds__(kAttentionThreads, 1)
    key_gradient_kernel(const AttentionGradient p, float scale, float factor) {
  using Shared = GradientShared<T, kHead, kOtherQueries<T, kHead>>;
  LOSATOK_SHARED(Shared, shared);
  constexpr int kQueries = kOtherQueries<T, kHead>;
  const AttentionBlock at = attention_block(p.keys.time, p.heads);
  const int64_t length = valid_length(p.keys, at.b);
  const int64_t queries = at.first < length ? valid_length(p.queries, at.b) : 0;
  const int64_t tiles = ceil_div<int64_t>(queries, kQueries);
  const Matrix<T> k = head_matrix<T>(p.ready, at.b, at.head, length, p.head_size);
  const Matrix<T> v = head_matrix<T>(p.v, at.b, at.head, length, p.head_size);
  const Matrix<T> q = head_matrix<T>(p.other, at.b, at.head, queries, p.head_size);
  const Matrix<T> g = head_matrix<T>(p.grad, at.b, at.head, queries, p.head_size);
  stage_tile<kAttentionThreads, kAttentionRows, kHead>(shared.own, k, at.first, 0);
  stage_tile<kAttentionThreads, kAttentionRows, kHead>(shared.own_pair, v, at.first, 0);
  async_copy_commit();

  RowsProduct<T, kHead> by_keys, by_values;
  by_keys.clear();
  by_values.clear();
#pragma unroll 1
  for (int64_t tile = 0; tile < tiles; ++tile) {
    stage_tile<kAttentionThreads, kQueries, kHead>(shared.other, q, tile * kQueries, 0);
    stage_tile<kAttentionThreads, kQueries, kHead>(shared.other_pair, g, tile * kQueries, 0);
    async_copy_commit();
    load_row_sums<kQueries>(p, at, tile * kQueries, queries, shared.lse, shared.delta);
    async_copy_wait<0>();
    __syncthreads();
    RowsProduct<T, kQueries> product;
    product.clear();
    add_product<false, kHead>(product, shared.own, shared.other);
    product.store(shared.scores);
    __syncthreads();
    Entries<kQueries> entries;
    load_entries<kQueries>(shared.scores, entries);
#pragma unroll
    for (int j = 0; j < kEntriesPerRow<kQueries>; ++j) {
      const float lse = shared.lse[score_column(j)];
#pragma unroll
      for (int i = 0; i < kRowsPerLane; ++i) entries[i][j] = exp2f(fmaf(entries[i][j], scale, -lse));
    }
    store_weights<T, kQueries>(entries, shared.weights);
    __syncthreads();
    add_product<true, kQueries>(by_values, shared.weights, shared.other_pair);
    product.clear();
    add_product<false, kHead>(product, shared.own_pair, shared.other_pair);
    product.store(shared.scores);
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kEntriesPerRow<kQueries>; ++j) {
      const int c = score_column(j);
      const float delta = shared.delta[c];
#pragma unroll
      for (int i = 0; i < kRowsPerLane; ++i) entries[i][j] *= shared.scores[score_row(i)][c] - delta;
    }
    store_weights<T, kQueries>(entries, shared.weights);
    __syncthreads();
    add_product<true, kQueries>(by_keys, shared.weights, shared.other);
    __syncthreads();  // all are done with the tile
  }
  async_copy_wait<0>();  // of a block without a query: its own rows
  __syncthreads();
  by_values.store(shared.sums);
  __syncthreads();
  store_rows<T, kHead>(shared.sums, at, p.keys.time, p.heads, p.head_size, p.grad_v,
                       [&](int r, float x) { return at.first + r < length ? x : 0.f; });
  __syncthreads();
  by_keys.store(shared.sums);
  __syncthreads();
  finish_gradient<T, kHead>(shared, p, at, p.keys, length, factor);
}

// The kernel of either side; `frames` are those of its own rows.
template <bool kOfQueries>
cudaError_t launch_gradient(DType dtype, const AttentionGradient& a, const Frames& frames, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    return for_head_size(a.head_size, [&]<int kHead>() {
      dim3 grid;
      if (!attention_grid(frames.batch, a.heads, frames.time, &grid)) return cudaErrorInvalidValue;
      constexpr int kOther = kOfQueries ? kOtherRows<T> : kOtherQueries<T, kHead>;
      constexpr auto kernel = kOfQueries ? query_gradient_kernel<T, kHead> : key_gradient_kernel<T, kHead>;
      return launch(kernel, grid, kAttentionThreads, sizeof(GradientShared<T, kHead, kOther>), stream, a,
                    score_scale(a.head_size), 1.f / std::sqrt(static_cast<float>(a.head_size)));
    });
  });
}

}  // namespace

cudaError_t attention_query_gradient(DType dtype, const AttentionGradient& a, cudaStream_t stream) {
  return launch_gradient<true>(dtype, a, a.queries, stream);
}

cudaError_t attention_key_gradient(DType dtype, const AttentionGradient& a, cudaStream_t stream) {
  return launch_gradient<false>(dtype, a, a.keys, stream);
}

}  // namespace losatok::cuda
