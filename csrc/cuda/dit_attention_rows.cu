// The attention's kernels over rows: keys and queries prepared into a scratch, and inner products of heads.
#include "cuda/dit_attention.cuh"

namespace losatok::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRowsPerBlock = kThreads / kWarp;

// Which row [B * rows * H] a warp has, and where it lies.
struct HeadPlace {
  int64_t n, b, t, head;
  bool valid;
};

__device__ __forceinline__ HeadPlace head_place(const Frames& frames, int64_t heads) {
  const int64_t n = static_cast<int64_t>(blockIdx.x) * kRowsPerBlock + threadIdx.x / kWarp;
  const int64_t row = n / heads, b = row / frames.time, t = row % frames.time;
  const bool valid = b < frames.batch && t < valid_length(frames, b);
  return {n, b, t, n % heads, valid};
}

template <typename T>
__device__ __forceinline__ const T* head_at(const Heads& heads, const HeadPlace& at) {
  return head_start<T>(heads, at.b, at.head) + at.t * heads.row_stride;
}

template <int kHead>
struct PrepareShared {
  float rows[kRowsPerBlock][kHead];
};

template <typename T, int kHead>
__global__ void __launch_bounds__(kThreads) prepare_heads_kernel(const PrepareHeads p) {
  LOSATOK_SHARED(PrepareShared<kHead>, shared);
  const HeadPlace at = head_place(p.frames, p.heads);
  if (at.b >= p.frames.batch) return;  // a whole warp; no barrier follows
  float x[kPerLane<kHead>];
  load_head<kHead>(head_at<T>(p.x, at), at.valid ? p.head_size : 0, x);
  prepare_head<kHead>(p.preparation, p.head_size, at.t, shared.rows[threadIdx.x / kWarp], x);
  T* prepared = static_cast<T*>(p.prepared) + at.n * p.head_size;
#pragma unroll
  for (int i = 0; i < kPerLane<kHead>; ++i) {
    const int c = lane_feature(i);
    if (c < p.head_size) prepared[c] = from_float<T>(at.valid ? x[i] : 0.f);
  }
}

template <typename T, int kHead>
__global__ void __launch_bounds__(kThreads) head_products_kernel(const HeadProducts p) {
  const HeadPlace at = head_place(p.frames, p.heads);
  if (at.b >= p.frames.batch) return;  // a whole warp; no barrier follows
  float a[kPerLane<kHead>], b[kPerLane<kHead>];
  load_head<kHead>(head_at<T>(p.a, at), at.valid ? p.head_size : 0, a);
  load_head<kHead>(head_at<T>(p.b, at), at.valid ? p.head_size : 0, b);
#pragma unroll
  for (int i = 0; i < kPerLane<kHead>; ++i) a[i] *= b[i];
  const float product = head_sum<kHead>(a);
  if (threadIdx.x % kWarp == 0) p.products[(at.b * p.heads + at.head) * p.frames.time + at.t] = product;
}

}  // namespace

cudaError_t prepare_heads(DType dtype, const PrepareHeads& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    return for_head_size(a.head_size, [&]<int kHead>() {
      dim3 grid;
      if (!row_grid<kRowsPerBlock>(a.frames.batch * a.frames.time * a.heads, &grid)) return cudaErrorInvalidValue;
      return launch(prepare_heads_kernel<T, kHead>, grid, kThreads, sizeof(PrepareShared<kHead>), stream, a);
    });
  });
}

cudaError_t head_products(DType dtype, const HeadProducts& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    return for_head_size(a.head_size, [&]<int kHead>() {
      dim3 grid;
      if (!row_grid<kRowsPerBlock>(a.frames.batch * a.frames.time * a.heads, &grid)) return cudaErrorInvalidValue;
      return launch(head_products_kernel<T, kHead>, grid, kThreads, 0, stream, a);
    });
  });
}

int64_t attention_blocks(int64_t rows) { return ceil_div<int64_t>(rows, kAttentionRows); }

}  // namespace losatok::cuda
