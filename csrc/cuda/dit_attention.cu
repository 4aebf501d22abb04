// The attention's forward: a block holds 64 queries of one head and goes over its keys and values, tile by tile, with a
// running softmax. Scores exist one tile at a time, in shared memory.
#include "cuda/dit_attention.cuh"

namespace losatok::cuda {
namespace {

template <typename T, int kHead>
struct ForwardShared {
  HeadTile<T, kAttentionRows, kHead> queries;
  union {  // used in turn, with barriers between
    struct {
      HeadTile<T, kOtherRows<T>, kHead> keys[2];
      HeadTile<T, kOtherRows<T>, kHead> values[2];
    };
    SumTile<kHead> sums;
  };
  ScoreTile<kOtherRows<T>> scores;
  WeightTile<T, kOtherRows<T>> weights;
  float factors[kAttentionRows];
  float rows[kAttentionWarps][kHead];
};

// Block: see attention_block. Two stages of keys and values are in flight.
template <typename T, int kHead>
__global__ void __launch_bounds__(kAttentionThreads, 1) forward_kernel(const AttentionForward p, float scale) {
  using Shared = ForwardShared<T, kHead>;
  LOSATOK_SHARED(Shared, shared);
  constexpr int kKeys = kOtherRows<T>;
  const AttentionBlock at = attention_block(p.queries.time, p.heads);
  const int64_t time = p.queries.time, length = valid_length(p.queries, at.b);
  const int64_t keys = at.first < length ? valid_length(p.keys, at.b) : 0, tiles = ceil_div<int64_t>(keys, kKeys);
  const Matrix<T> q = head_matrix<T>(p.q, at.b, at.head, length, p.head_size);
  const Matrix<T> k = head_matrix<T>(p.k, at.b, at.head, keys, p.head_size);
  const Matrix<T> v = head_matrix<T>(p.v, at.b, at.head, keys, p.head_size);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;

  const auto stage = [&](int64_t tile) {
    if (tile < tiles) {
      stage_tile<kAttentionThreads, kKeys, kHead>(shared.keys[tile % 2], k, tile * kKeys, 0);
      stage_tile<kAttentionThreads, kKeys, kHead>(shared.values[tile % 2], v, tile * kKeys, 0);
    }
    async_copy_commit();  // an empty group keeps the count of the waits right
  };
  stage_tile<kAttentionThreads, kAttentionRows, kHead>(shared.queries, q, at.first, 0);
  async_copy_commit();
  stage(0);
  typename RowsProduct<T, kHead>::RowsOfLane rows_of_lane;
  rows_of_lane.find(shared.scores);
  async_copy_wait<1>();
  __syncthreads();
  if (p.preparation.norm != HeadNorm::kNone || p.preparation.rotary != 0) {  // for the whole grid
    for (int r = warp * kWarpRows; r < (warp + 1) * kWarpRows; ++r) {
      if (at.first + r >= length) break;  // a whole warp
      float x[kPerLane<kHead>];
      load_head<kHead>(shared.queries[r], kHead, x);
      prepare_head<kHead>(p.preparation, p.head_size, at.first + r, shared.rows[warp], x);
#pragma unroll
      for (int i = 0; i < kPerLane<kHead>; ++i) {
        if (lane_feature(i) < kHead) shared.queries[r][lane_feature(i)] = from_float<T>(x[i]);
      }
    }
  }

  RowsProduct<T, kHead> out;
  out.clear();
  float highest[kRowsPerLane], total[kRowsPerLane];
#pragma unroll
  for (int i = 0; i < kRowsPerLane; ++i) {
    highest[i] = -INFINITY;
    total[i] = 0.f;
  }
#pragma unroll 1
  for (int64_t tile = 0; tile < tiles; ++tile) {
    async_copy_wait<0>();
    __syncthreads();  // the tile is there for all, and all are done with the slot that the next one goes to
    stage(tile + 1);
    {
      RowsProduct<T, kKeys> scores;
      scores.clear();
      add_product<false, kHead>(scores, shared.queries, shared.keys[tile % 2]);
      scores.store(shared.scores);
    }
    __syncthreads();
    const int64_t left = keys - tile * kKeys;
#pragma unroll
    for (int i = 0; i < kRowsPerLane; ++i) {
      const int r = score_row(i);
      float entries[kEntriesPerRow<kKeys>], best = highest[i];
#pragma unroll
      for (int j = 0; j < kEntriesPerRow<kKeys>; ++j) {
        const int c = score_column(j);
        entries[j] = c < left ? shared.scores[r][c] * scale : -INFINITY;
        best = fmaxf(best, entries[j]);
      }
#pragma unroll
      for (int offset = kLanesPerRow / 2; offset > 0; offset /= 2) {
        best = fmaxf(best, __shfl_xor_sync(kFullMask, best, offset));
      }
      const float shrink = exp2f(highest[i] - best);
      highest[i] = best;
      float sum = 0.f;
#pragma unroll
      for (int j = 0; j < kEntriesPerRow<kKeys>; ++j) {
        const float weight = exp2f(entries[j] - best);
        sum += weight;
        shared.weights[r][score_column(j)] = from_float<T>(weight);
      }
      total[i] = total[i] * shrink + sum;  // of the lane's own columns
      if (lane % kLanesPerRow == 0) shared.factors[r] = shrink;
    }
    __syncthreads();
    out.scale_rows(shared.factors, rows_of_lane);
    add_product<true, kKeys>(out, shared.weights, shared.values[tile % 2]);
  }
  __syncthreads();
  out.store(shared.sums);
#pragma unroll
  for (int i = 0; i < kRowsPerLane; ++i) {
#pragma unroll
    for (int offset = kLanesPerRow / 2; offset > 0; offset /= 2) {
      total[i] += __shfl_xor_sync(kFullMask, total[i], offset);
    }
    const int r = score_row(i);
    const int64_t row = at.first + r;
    if (lane % kLanesPerRow == 0) {
      shared.factors[r] = keys > 0 && row < length ? 1.f / total[i] : 0.f;
      if (row < time) {
        p.lse[(at.b * p.heads + at.head) * time + row] =
            keys > 0 && row < length ? 0.6931471805599453f * (highest[i] + log2f(total[i])) : -INFINITY;
      }
    }
  }
  __syncthreads();
  store_rows<T, kHead>(shared.sums, at, time, p.heads, p.head_size, p.out,
                       [&](int r, float x) { return at.first + r < length ? x * shared.factors[r] : 0.f; });
}

}  // namespace

cudaError_t attention_forward(DType dtype, const AttentionForward& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    return for_head_size(a.head_size, [&]<int kHead>() {
      dim3 grid;
      if (!attention_grid(a.queries.batch, a.heads, a.queries.time, &grid)) return cudaErrorInvalidValue;
      return launch(forward_kernel<T, kHead>, grid, kAttentionThreads, sizeof(ForwardShared<T, kHead>), stream, a,
                    score_scale(a.head_size));
    });
  });
}

}  // namespace losatok::cuda
