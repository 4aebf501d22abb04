// The tiled time-relation kernel: tiles of both Gram matrices in shared memory, never one of [T, T] in global memory.
#include "cuda/tile_product.cuh"
#include "cuda/time_relation.h"

namespace losatok::cuda {
namespace {

constexpr int kT = kTile;
constexpr int kGradColumns = 128;  // features of low that a block makes the gradient of
constexpr int kWarpsM = 2, kWarpsN = 4;
constexpr int kThreads = kWarp * kWarpsM * kWarpsN;
constexpr int kPerThread = kT * kT / kThreads;

template <typename T>
struct RelationShared {
  union {  // used in turn, with barriers between
    Stages<T, kT, kT, false> stages;
    float gram[kT][kT + 4];
    T columns[kT][kGradColumns + Staging<T>::kPad];  // rows j of low, normalised
    float grad[kT][kGradColumns + 4];
  };
  T difference[kT][kT + Staging<T>::kPad];
  float inverse_low[2][kT];  // of the tile's rows i, and columns j
  float inverse_high[2][kT];
  float sums[kThreads / kWarp];
};

template <typename T>
struct RelationParameters {
  Clips low, high;
  const float* low_inverse;
  const float* high_inverse;
  Frames frames;
  int64_t window;
  float* terms;
  float* grad;
};

template <typename T>
__device__ __forceinline__ Matrix<T> clip_matrix(const Clips& clips, int64_t b, int64_t length) {
  const T* data = static_cast<const T*>(clips.data) + b * clips.batch_stride;
  // In elements, 16 bytes at a time: like make_matrix, for the item's own start.
  const bool vectors =
      reinterpret_cast<uintptr_t>(data) % 16 == 0 && clips.row_stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  return {data, length, clips.features, clips.row_stride, vectors};
}

// Block (b * row blocks + i, split or part of low's features). A thread owns kPerThread fixed entries of every tile.
template <typename T, Relation kKind>
__global__ void __launch_bounds__(kThreads, kKind == Relation::kLossAndGrad ? 1 : 2)
    relation_kernel(const RelationParameters<T> p) {
  LOSATOK_SHARED(RelationShared<T>, shared);
  const int64_t blocks = ceil_div<int64_t>(p.frames.time, kT);
  const int64_t b = blockIdx.x / blocks, row_block = blockIdx.x % blocks;
  const int64_t i0 = row_block * kT, time = p.frames.time, length = valid_length(p.frames, b);
  const Matrix<T> low = clip_matrix<T>(p.low, b, length), high = clip_matrix<T>(p.high, b, length);
  const int64_t feature0 = kKind == Relation::kLossAndGrad ? static_cast<int64_t>(blockIdx.y) * kGradColumns : 0;

  const auto load_inverse = [&](int side, int64_t first) {
    if (threadIdx.x < kT) {
      const int64_t row = first + threadIdx.x;
      if constexpr (kKind != Relation::kEnergy) {
        shared.inverse_low[side][threadIdx.x] = row < length ? p.low_inverse[b * time + row] : 0.f;
      }
      shared.inverse_high[side][threadIdx.x] = row < length ? p.high_inverse[b * time + row] : 0.f;
    }
  };

  // The column tiles that hold a valid pair: none for rows past the length, those in reach of the window, and for sums
  // alone those from the diagonal on, whose mirror images count twice.
  int64_t first = 0, last = i0 < length ? ceil_div<int64_t>(length, kT) : 0, step = 1;
  if (p.window >= 0) {
    const int64_t lowest = i0 - p.window, highest = i0 + kT - 1 + p.window;
    first = lowest > 0 ? lowest / kT : 0;
    last = highest / kT + 1 < last ? highest / kT + 1 : last;
  }
  if constexpr (kKind != Relation::kLossAndGrad) {
    first = row_block + blockIdx.y;
    step = gridDim.y;
  }

  TileProduct<T, kT, kGradColumns, kWarpsM, kWarpsN> grad;
  if constexpr (kKind == Relation::kLossAndGrad) grad.clear();
  float total = 0.f;
  load_inverse(0, i0);
  for (int64_t tile = first; tile < last; tile += step) {
    const int64_t j0 = tile * kT;
    load_inverse(1, j0);  // the barriers inside accumulate() come before the first use
    float entries[kPerThread];
    {
      TileProduct<T, kT, kT, kWarpsM, kWarpsN> product;
      product.clear();
      accumulate<false>(product, shared.stages, high, i0, high, j0);
      product.store(shared.gram);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        const int r = (threadIdx.x + k * kThreads) / kT, c = threadIdx.x % kT;
        entries[k] = shared.gram[r][c] * shared.inverse_high[0][r] * shared.inverse_high[1][c];
      }
      __syncthreads();
    }
    if constexpr (kKind != Relation::kEnergy) {
      TileProduct<T, kT, kT, kWarpsM, kWarpsN> product;
      product.clear();
      accumulate<false>(product, shared.stages, low, i0, low, j0);
      product.store(shared.gram);
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        const int r = (threadIdx.x + k * kThreads) / kT, c = threadIdx.x % kT;
        entries[k] = shared.gram[r][c] * shared.inverse_low[0][r] * shared.inverse_low[1][c] - entries[k];
      }
      __syncthreads();
    }
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < kPerThread; ++k) {
      const int r = (threadIdx.x + k * kThreads) / kT, c = threadIdx.x % kT;
      const int64_t i = i0 + r, j = j0 + c, distance = i < j ? j - i : i - j;
      if (i >= length || j >= length || (p.window >= 0 && distance > p.window)) entries[k] = 0.f;
      sum = fmaf(entries[k], entries[k], sum);
      if constexpr (kKind == Relation::kLossAndGrad) shared.difference[r][c] = from_float<T>(entries[k]);
    }
    total += kKind != Relation::kLossAndGrad && tile != row_block ? 2.f * sum : sum;
    if constexpr (kKind == Relation::kLossAndGrad) {
#pragma unroll 4
      for (int i = threadIdx.x; i < kT * kGradColumns; i += kThreads) {
        const int r = i / kGradColumns, c = i % kGradColumns;
        const int64_t row = j0 + r, feature = feature0 + c;
        float value = 0.f;
        if (row < length && feature < low.columns) {
          value = to_float(low.data[row * low.stride + feature]) * shared.inverse_low[1][r];
        }
        shared.columns[r][c] = from_float<T>(value);
      }
      __syncthreads();
#pragma unroll 1
      for (int k = 0; k < kT; k += Staging<T>::kDepth) {
        grad.template step<true>(&shared.difference[0][k], kT + Staging<T>::kPad, &shared.columns[k][0],
                                 kGradColumns + Staging<T>::kPad);
      }
      __syncthreads();
    }
  }

  total = block_sum<kThreads>(total, shared.sums);
  if constexpr (kKind == Relation::kLossAndGrad) {
    if (threadIdx.x == 0 && blockIdx.y == 0) p.terms[blockIdx.x] = total;
    grad.store(shared.grad);
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < kT * kGradColumns; i += kThreads) {
      const int r = i / kGradColumns, c = i % kGradColumns;
      const int64_t row = i0 + r, feature = feature0 + c;
      if (row < time && feature < low.columns) {
        p.grad[(b * time + row) * low.columns + feature] = 4.f * shared.grad[r][c];
      }
    }
  } else {
    if (threadIdx.x == 0) p.terms[static_cast<int64_t>(blockIdx.x) * gridDim.y + blockIdx.y] = total;
  }
}

template <typename T, Relation kKind>
cudaError_t launch_relation(const TiledRelation& a, int64_t splits, cudaStream_t stream) {
  const int64_t blocks = a.frames.batch * ceil_div<int64_t>(a.frames.time, kT);
  if (!fits_grid(blocks) || splits > 65535) return cudaErrorInvalidValue;
  const RelationParameters<T> p{a.low, a.high, a.low_inverse, a.high_inverse, a.frames, a.window, a.terms, a.grad};
  return launch(relation_kernel<T, kKind>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(splits)), kThreads,
                sizeof(RelationShared<T>), stream, p);
}

}  // namespace

int64_t column_splits(Relation kind, int64_t batch, int64_t time, int processors) {
  if (kind == Relation::kLossAndGrad) return 1;
  const int64_t tiles = std::max<int64_t>(1, ceil_div<int64_t>(time, kT));
  const int64_t blocks = std::max<int64_t>(1, batch * tiles);
  return std::clamp<int64_t>(ceil_div<int64_t>(2 * processors, blocks), 1, std::min<int64_t>(tiles, 65535));
}

cudaError_t tiled_relation(DType dtype, Relation kind, const TiledRelation& arguments, int64_t splits,
                           cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    switch (kind) {
      case Relation::kEnergy:
        return launch_relation<T, Relation::kEnergy>(arguments, splits, stream);
      case Relation::kLoss:
        return launch_relation<T, Relation::kLoss>(arguments, splits, stream);
      case Relation::kLossAndGrad:
        return launch_relation<T, Relation::kLossAndGrad>(
            arguments, ceil_div<int64_t>(arguments.low.features, kGradColumns), stream);
    }
    return cudaErrorInvalidValue;
  });
}

}  // namespace losatok::cuda
