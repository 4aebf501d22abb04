// The gated residual and its gradients: four elements a thread; sums over the frames of a clip in two stages.
#include "cuda/clip_sums.cuh"
#include "cuda/gated_residual.h"

namespace losatok::cuda {
namespace {

constexpr int kThreads = 256;

// Where a thread's four elements lie: a row of [B * T] and its columns.
struct Place {
  int64_t n, b, t, c;
};

__device__ __forceinline__ Place place_of(int64_t time, int64_t columns) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, per_row = ceil_div<int64_t>(columns, 4);
  const int64_t n = i / per_row;
  return {n, n / time, n % time, i % per_row * 4};
}

bool element_grid(int64_t rows, int64_t columns, dim3* grid) {
  const int64_t blocks = ceil_div<int64_t>(rows * ceil_div<int64_t>(columns, 4), kThreads);
  *grid = dim3(static_cast<unsigned>(blocks));
  return fits_grid(blocks);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gated_residual_kernel(const GatedResidual p, bool four) {
  const int64_t columns = p.x.features;
  const Place at = place_of(p.time, columns);
  if (at.n >= p.batch * p.time) return;
  float x[4], branch[4], gate[4];
  load_four(clip_row<T>(p.x, at.b, at.t), at.c, columns, four, x);
  load_four(clip_row<T>(p.branch, at.b, at.t), at.c, columns, four, branch);
  load_four(clip_row<T>(p.gate, at.b, at.t), at.c, columns, four, gate);
#pragma unroll
  for (int i = 0; i < 4; ++i) x[i] = fmaf(gate[i], branch[i], x[i]);
  store_four(static_cast<T*>(p.y) + at.n * columns, at.c, columns, four, x);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gated_residual_backward_kernel(const GatedResidualBackward p, bool four) {
  const int64_t columns = p.branch.features;
  const Place at = place_of(p.time, columns);
  if (at.n >= p.batch * p.time) return;
  float grad[4], gate[4];
  load_four(clip_row<T>(p.grad, at.b, at.t), at.c, columns, four, grad);
  load_four(clip_row<T>(p.gate, at.b, at.t), at.c, columns, four, gate);
#pragma unroll
  for (int i = 0; i < 4; ++i) gate[i] *= grad[i];
  store_four(static_cast<T*>(p.grad_branch) + at.n * columns, at.c, columns, four, gate);
  if (p.grad_gate == nullptr) return;
  float branch[4];
  load_four(clip_row<T>(p.branch, at.b, at.t), at.c, columns, four, branch);
#pragma unroll
  for (int i = 0; i < 4; ++i) branch[i] *= grad[i];
  store_four(static_cast<T*>(p.grad_gate) + at.n * columns, at.c, columns, four, branch);
}

// What a frame adds to the gradient of its clip's gate.
template <typename T>
struct GateTerms {
  Clips grad, branch;
  bool four;

  __device__ __forceinline__ void operator()(int64_t b, int64_t t, int64_t c, float (&values)[1][4]) const {
    float row[4];
    load_four(clip_row<T>(grad, b, t), c, branch.features, four, values[0]);
    load_four(clip_row<T>(branch, b, t), c, branch.features, four, row);
#pragma unroll
    for (int i = 0; i < 4; ++i) values[0][i] *= row[i];
  }
};

}  // namespace

cudaError_t gated_residual(DType dtype, const GatedResidual& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    dim3 grid;
    if (!element_grid(a.batch * a.time, a.x.features, &grid)) return cudaErrorInvalidValue;
    const bool four = clips_read_four<T>(a.x) && clips_read_four<T>(a.branch) && clips_read_four<T>(a.gate) &&
                      reads_four<T>(a.y, a.x.features, a.x.features);
    return launch(gated_residual_kernel<T>, grid, kThreads, 0, stream, a, four);
  });
}

cudaError_t gated_residual_backward(DType dtype, const GatedResidualBackward& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    dim3 grid;
    const int64_t columns = a.branch.features;
    if (!element_grid(a.batch * a.time, columns, &grid)) return cudaErrorInvalidValue;
    const bool four = clips_read_four<T>(a.grad) && clips_read_four<T>(a.branch);
    if (a.gate_parts != nullptr) {
      const GateTerms<T> terms{a.grad, a.branch, four};
      const cudaError_t error =
          launch_clip_sums<1>(terms, {nullptr, a.batch, a.time}, columns, a.gate_parts, nullptr, stream);
      if (error != cudaSuccess) return error;
    }
    const bool all_four = four && clips_read_four<T>(a.gate) && reads_four<T>(a.grad_branch, columns, columns) &&
                          reads_four<T>(a.grad_gate, columns, columns);
    return launch(gated_residual_backward_kernel<T>, grid, kThreads, 0, stream, a, all_four);
  });
}

}  // namespace losatok::cuda
