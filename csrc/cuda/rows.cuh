// Reading rows of any element type four elements at a time, in float32.
#pragma once

#include "cuda/device.cuh"

namespace losatok::cuda {

template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T values[4];
};

// Whether rows at `data`, `stride` elements apart and `columns` long, can be read four elements at a time.
template <typename T>
bool reads_four(const void* data, int64_t stride, int64_t columns) {
  return reinterpret_cast<uintptr_t>(data) % sizeof(Four<T>) == 0 && stride % 4 == 0 && columns % 4 == 0;
}

// The grid of a kernel that gives each of `rows` rows a warp, kRowsPerBlock of them to a block; false where CUDA has no
// grid that large.
template <int kRowsPerBlock>
bool row_grid(int64_t rows, dim3* grid) {
  const int64_t blocks = ceil_div<int64_t>(rows, kRowsPerBlock);
  *grid = dim3(static_cast<unsigned>(blocks));
  return fits_grid(blocks);
}

template <typename T>
bool clips_read_four(const Clips& clips) {
  return reads_four<T>(clips.data, clips.row_stride, clips.features) && clips.batch_stride % 4 == 0;
}

template <typename T>
__device__ __forceinline__ const T* clip_row(const Clips& clips, int64_t b, int64_t t) {
  return static_cast<const T*>(clips.data) + b * clips.batch_stride + t * clips.row_stride;
}

// out = row[c .. c + 4] of a row of `columns`, zeros past its end; c is a multiple of four.
template <typename T>
__device__ __forceinline__ void load_four(const T* row, int64_t c, int64_t columns, bool four, float (&out)[4]) {
  if (four) {
    const Four<T> loaded = *reinterpret_cast<const Four<T>*>(row + c);
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = to_float(loaded.values[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = c + i < columns ? to_float(row[c + i]) : 0.f;
  }
}

template <typename T>
__device__ __forceinline__ void store_four(T* row, int64_t c, int64_t columns, bool four, const float (&in)[4]) {
  if (four) {
    Four<T> stored;
#pragma unroll
    for (int i = 0; i < 4; ++i) stored.values[i] = from_float<T>(in[i]);
    *reinterpret_cast<Four<T>*>(row + c) = stored;
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (c + i < columns) row[c + i] = from_float<T>(in[i]);
    }
  }
}

// The squared norm of a row, by one warp; valid in every lane.
template <typename T>
__device__ __forceinline__ float row_square_sum(const T* row, int64_t columns, bool four) {
  float sum = 0.f;
  for (int64_t c = threadIdx.x % kWarp * 4; c < columns; c += 4 * kWarp) {
    float x[4];
    load_four(row, c, columns, four, x);
#pragma unroll
    for (int i = 0; i < 4; ++i) sum = fmaf(x[i], x[i], sum);
  }
  return warp_sum(sum);
}

__device__ __forceinline__ float inverse_norm(float square_sum) { return 1.f / fmaxf(sqrtf(square_sum), kNormEps); }

}  // namespace losatok::cuda
