// Matrix products of one block: tiles staged through shared memory with asynchronous copies, three stages deep.
//
// bfloat16 and float16 multiply on the matrix units (wmma, 16 x 16 x 16, float32 sums); float32 by fused multiply-adds.
// Operands are row-major in global memory: "rows" operands [R, K] contiguous along K, "columns" operands [K, C]
// contiguous along C. What lies outside an operand counts as zero and is never read.
#pragma once

#include "cuda/async_copy.cuh"

namespace losatok::cuda {

// A row-major matrix in global memory; `vectors`: base and row stride are multiples of 16 bytes.
template <typename T>
struct Matrix {
  const T* data;
  int64_t rows;
  int64_t columns;
  int64_t stride;
  bool vectors;
};

template <typename T>
Matrix<T> make_matrix(const void* data, int64_t rows, int64_t columns, int64_t stride) {
  const bool vectors = reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride * sizeof(T) % 16 == 0;
  return {static_cast<const T*>(data), rows, columns, stride, vectors};
}

template <typename T>
struct Staging {
  static constexpr int kVector = 16 / sizeof(T);  // elements of one copy
  static constexpr int kDepth = 64 / sizeof(T);   // elements along K of one stage
  static constexpr int kPad = kVector;            // keeps rows off each other's banks and 16-byte aligned
  static constexpr int kStages = 3;
};

// Starts copying matrix[row0 + r, column0 + c] to tile[r][c]; zeros outside. The caller commits, or makes a barrier.
template <int kThreads, int kRows, int kColumns, typename T, int kStride>
__device__ __forceinline__ void stage_tile(T (&tile)[kRows][kStride], const Matrix<T>& matrix, int64_t row0,
                                           int64_t column0) {
  constexpr int kVector = Staging<T>::kVector;
  constexpr int kPerRow = kColumns / kVector;
  static_assert(kColumns % kVector == 0 && kStride >= kColumns);
#pragma unroll 1
  for (int i = threadIdx.x; i < kRows * kPerRow; i += kThreads) {
    const int r = i / kPerRow, c = i % kPerRow * kVector;
    const int64_t row = row0 + r, column = column0 + c;
    int64_t valid = row < matrix.rows ? matrix.columns - column : 0;
    valid = valid < 0 ? 0 : (valid > kVector ? kVector : valid);
    const T* source = valid > 0 ? matrix.data + row * matrix.stride + column : matrix.data;
    if (matrix.vectors) {
      async_copy_16(&tile[r][c], source, static_cast<int>(valid) * static_cast<int>(sizeof(T)));
    } else {
#pragma unroll
      for (int j = 0; j < kVector; ++j) tile[r][c + j] = j < valid ? source[j] : from_float<T>(0.f);
    }
  }
}

// The product of a tile of kM x kN by a block of kWarpsM x kWarpsN warps; sums live in registers.
// step<kColumnsB, kDepth>(a, b) adds kDepth terms, one stage of them by default: a [kM][kDepth] by rows; b [kN][kDepth]
// (kColumnsB false) or [kDepth][kN] (true). scale_rows multiplies each row by a factor of its own; since fragments are
// opaque, RowsOfLane finds out once which rows a lane's elements belong to.
template <typename T, int kM, int kN, int kWarpsM, int kWarpsN>
struct TileProduct {
  static constexpr int kThreads = kWarp * kWarpsM * kWarpsN;
  static constexpr int kFragmentsM = kM / kWarpsM / 16;
  static constexpr int kFragmentsN = kN / kWarpsN / 16;
  static_assert(kM % (16 * kWarpsM) == 0 && kN % (16 * kWarpsN) == 0);

  using Sums = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float>;
  Sums sums[kFragmentsM][kFragmentsN];

  struct RowsOfLane {
    Sums rows;

    // Every thread of the block calls it; scratch is shared memory.
    template <int kRows, int kStride>
    __device__ __forceinline__ void find(float (&scratch)[kRows][kStride]) {
      static_assert(kRows >= 16 && kStride >= 16);
      for (int i = threadIdx.x; i < 16 * 16; i += kThreads) scratch[i / 16][i % 16] = static_cast<float>(i / 16);
      __syncthreads();
      nvcuda::wmma::load_matrix_sync(rows, &scratch[0][0], kStride, nvcuda::wmma::mem_row_major);
      __syncthreads();
    }
  };

  __device__ __forceinline__ void scale_rows(const float (&factors)[kM], const RowsOfLane& lane) {
    const float* own = factors + threadIdx.x / kWarp / kWarpsN * (kM / kWarpsM);
#pragma unroll
    for (int i = 0; i < kFragmentsM; ++i)
#pragma unroll
      for (int e = 0; e < Sums::num_elements; ++e) {
        const float factor = own[16 * i + static_cast<int>(lane.rows.x[e])];
#pragma unroll
        for (int j = 0; j < kFragmentsN; ++j) sums[i][j].x[e] *= factor;
      }
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kFragmentsM; ++i)
#pragma unroll
      for (int j = 0; j < kFragmentsN; ++j) nvcuda::wmma::fill_fragment(sums[i][j], 0.f);
  }

  template <bool kColumnsB, int kDepth = Staging<T>::kDepth>
  __device__ __forceinline__ void step(const T* a, int stride_a, const T* b, int stride_b) {
    using Layout = std::conditional_t<kColumnsB, nvcuda::wmma::row_major, nvcuda::wmma::col_major>;
    const int warp = threadIdx.x / kWarp;
    const int row = warp / kWarpsN * (kM / kWarpsM), column = warp % kWarpsN * (kN / kWarpsN);
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, T, nvcuda::wmma::row_major> left[kFragmentsM];
#pragma unroll
      for (int i = 0; i < kFragmentsM; ++i) {
        nvcuda::wmma::load_matrix_sync(left[i], a + (row + 16 * i) * stride_a + k, stride_a);
      }
#pragma unroll
      for (int j = 0; j < kFragmentsN; ++j) {
        nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, T, Layout> right;
        const int n = column + 16 * j;
        nvcuda::wmma::load_matrix_sync(right, kColumnsB ? b + k * stride_b + n : b + n * stride_b + k, stride_b);
#pragma unroll
        for (int i = 0; i < kFragmentsM; ++i) nvcuda::wmma::mma_sync(sums[i][j], left[i], right, sums[i][j]);
      }
    }
  }

  template <int kStride>
  __device__ __forceinline__ void store(float (&tile)[kM][kStride]) const {
    const int warp = threadIdx.x / kWarp;
    const int row = warp / kWarpsN * (kM / kWarpsM), column = warp % kWarpsN * (kN / kWarpsN);
#pragma unroll
    for (int i = 0; i < kFragmentsM; ++i)
#pragma unroll
      for (int j = 0; j < kFragmentsN; ++j) {
        nvcuda::wmma::store_matrix_sync(&tile[row + 16 * i][column + 16 * j], sums[i][j], kStride,
                                        nvcuda::wmma::mem_row_major);
      }
  }
};

// float32: thread (y, x) of a grid of kThreads / 16 by 16 owns rows y + i * kY and columns x + j * 16.
template <int kM, int kN, int kWarpsM, int kWarpsN>
struct TileProduct<float, kM, kN, kWarpsM, kWarpsN> {
  static constexpr int kThreads = kWarp * kWarpsM * kWarpsN;
  static constexpr int kX = 16, kY = kThreads / kX;
  static constexpr int kRows = kM / kY, kColumns = kN / kX;
  static_assert(kM % kY == 0 && kN % kX == 0);

  float sums[kRows][kColumns];

  struct RowsOfLane {  // known without asking
    template <int kRowsOfScratch, int kStride>
    __device__ __forceinline__ void find(float (&)[kRowsOfScratch][kStride]) {}
  };

  __device__ __forceinline__ void scale_rows(const float (&factors)[kM], const RowsOfLane&) {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sums[i][j] *= factors[threadIdx.x / kX + i * kY];
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sums[i][j] = 0.f;
  }

  template <bool kColumnsB, int kDepth = Staging<float>::kDepth>
  __device__ __forceinline__ void step(const float* a, int stride_a, const float* b, int stride_b) {
    const int y = threadIdx.x / kX, x = threadIdx.x % kX;
#pragma unroll
    for (int k = 0; k < kDepth; k += 4) {
      alignas(16) float right[kColumns][4];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        if constexpr (kColumnsB) {
#pragma unroll
          for (int q = 0; q < 4; ++q) right[j][q] = b[(k + q) * stride_b + x + j * kX];
        } else {
          *reinterpret_cast<float4*>(right[j]) = *reinterpret_cast<const float4*>(b + (x + j * kX) * stride_b + k);
        }
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const float4 left = *reinterpret_cast<const float4*>(a + (y + i * kY) * stride_a + k);
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          sums[i][j] = fmaf(left.x, right[j][0], sums[i][j]);
          sums[i][j] = fmaf(left.y, right[j][1], sums[i][j]);
          sums[i][j] = fmaf(left.z, right[j][2], sums[i][j]);
          sums[i][j] = fmaf(left.w, right[j][3], sums[i][j]);
        }
      }
    }
  }

  template <int kStride>
  __device__ __forceinline__ void store(float (&tile)[kM][kStride]) const {
    const int y = threadIdx.x / kX, x = threadIdx.x % kX;
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int j = 0; j < kColumns; ++j) tile[y + i * kY][x + j * kX] = sums[i][j];
  }
};

// Stages of both operands, as shared memory. kColumnsB: B is [K, N] in memory instead of [N, K].
template <typename T, int kM, int kN, bool kColumnsB>
struct Stages {
  static constexpr int kRowsB = kColumnsB ? Staging<T>::kDepth : kN;
  static constexpr int kColumnsOfB = kColumnsB ? kN : Staging<T>::kDepth;
  T a[Staging<T>::kStages][kM][Staging<T>::kDepth + Staging<T>::kPad];
  T b[Staging<T>::kStages][kRowsB][kColumnsOfB + Staging<T>::kPad];
};

// product += A[row_a .. + kM, :] B^T (or B, for a columns operand)[.., n0 .. + kN]. Every thread of the block calls it;
// on return the stages are free again.
template <bool kColumnsB, typename T, int kM, int kN, int kWarpsM, int kWarpsN>
__device__ __forceinline__ void accumulate(TileProduct<T, kM, kN, kWarpsM, kWarpsN>& product,
                                           Stages<T, kM, kN, kColumnsB>& stages, const Matrix<T>& a, int64_t row_a,
                                           const Matrix<T>& b, int64_t n0) {
  using Config = Staging<T>;
  constexpr int kThreads = TileProduct<T, kM, kN, kWarpsM, kWarpsN>::kThreads;
  const int64_t steps = ceil_div<int64_t>(a.columns, Config::kDepth);
  const auto stage = [&](int64_t s) {
    if (s < steps) {
      const int slot = static_cast<int>(s % Config::kStages);
      const int64_t k = s * Config::kDepth;
      stage_tile<kThreads, kM, Config::kDepth>(stages.a[slot], a, row_a, k);
      if constexpr (kColumnsB) {
        stage_tile<kThreads, Config::kDepth, kN>(stages.b[slot], b, k, n0);
      } else {
        stage_tile<kThreads, kN, Config::kDepth>(stages.b[slot], b, n0, k);
      }
    }
    async_copy_commit();  // an empty group keeps the count of the wait below right
  };
  stage(0);
  stage(1);
#pragma unroll 1
  for (int64_t s = 0; s < steps; ++s) {
    async_copy_wait<1>();
    __syncthreads();  // stage s is there for all, and all are done with the slot that stage s + 2 goes to
    stage(s + 2);
    const int slot = static_cast<int>(s % Config::kStages);
    product.template step<kColumnsB>(&stages.a[slot][0][0], Config::kDepth + Config::kPad, &stages.b[slot][0][0],
                                     (kColumnsB ? kN : Config::kDepth) + Config::kPad);
  }
  __syncthreads();  // what is still in flight are empty groups
}

}  // namespace losatok::cuda
