// The bottleneck's products: the fused projection, and the gradient at its hidden units.
#include "cuda/activation.cuh"
#include "cuda/bottleneck.h"
#include "cuda/tile_product.cuh"

namespace losatok::cuda {
namespace {

constexpr int kPadFloat = 4;  // of float tiles in shared memory

// A block's rows, hidden units per round, warps, and how many blocks of them a multiprocessor should hold.
struct Large {
  static constexpr int kRows = 64, kHidden = 128, kWarpsM = 2, kWarpsN = 4, kBlocks = 2, kBlocksFloat = 1;
};
struct Small {
  static constexpr int kRows = 16, kHidden = 64, kWarpsM = 1, kWarpsN = 4, kBlocks = 4, kBlocksFloat = 4;
};

constexpr int kOut = kProjectMaxOut;

template <typename T, typename Config>
struct ProjectShared {
  union {  // used in turn, with barriers between
    Stages<T, Config::kRows, Config::kHidden, false> in;
    T out[Staging<T>::kStages][kOut][Staging<T>::kDepth + Staging<T>::kPad];
    float hidden_sums[Config::kRows][Config::kHidden + kPadFloat];
    float out_sums[Config::kRows][kOut + kPadFloat];
  };
  T activated[Config::kRows][Config::kHidden + Staging<T>::kPad];
};

template <typename T>
struct ProjectParameters {
  Matrix<T> x, weight_in, weight_out;
  const T* bias_in;
  const T* bias_out;
  T* z;
  T* hidden;
  float* partial;
  int64_t rounds;  // of Config::kHidden units, per split
  Activation activation;
};

// Block (i, s): rows i * kRows .., hidden units of split s. Each round makes kHidden hidden units of its rows in shared
// memory and adds their share of z, which stays in registers.
template <typename T, typename Config>
__global__ void __launch_bounds__(kWarp* Config::kWarpsM* Config::kWarpsN,
                                  std::is_same_v<T, float> ? Config::kBlocksFloat : Config::kBlocks)
    project_kernel(const ProjectParameters<T> p) {
  using Hidden = TileProduct<T, Config::kRows, Config::kHidden, Config::kWarpsM, Config::kWarpsN>;
  using Out = TileProduct<T, Config::kRows, kOut, Config::kWarpsM, Config::kWarpsN>;
  using Shared = ProjectShared<T, Config>;
  constexpr int kThreads = Hidden::kThreads;
  constexpr int kSteps = Config::kHidden / Staging<T>::kDepth;
  LOSATOK_SHARED(Shared, shared);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * Config::kRows;
  const int64_t rows = p.x.rows, hidden_size = p.weight_in.rows, out_size = p.weight_out.rows;

  Out out;
  out.clear();
  for (int64_t round = 0; round < p.rounds; ++round) {
    const int64_t h0 = (blockIdx.y * p.rounds + round) * Config::kHidden;
    if (h0 >= hidden_size) break;  // the same for the whole block
    {
      Hidden product;
      product.clear();
      accumulate<false>(product, shared.in, p.x, row0, p.weight_in, h0);
      product.store(shared.hidden_sums);
    }
    __syncthreads();
#pragma unroll 4
    for (int i = threadIdx.x; i < Config::kRows * Config::kHidden; i += kThreads) {
      const int r = i / Config::kHidden, c = i % Config::kHidden;
      const int64_t row = row0 + r, h = h0 + c;
      float value = 0.f;
      if (row < rows && h < hidden_size) {
        value = shared.hidden_sums[r][c] + (p.bias_in != nullptr ? to_float(p.bias_in[h]) : 0.f);
        if (p.hidden != nullptr) p.hidden[row * hidden_size + h] = from_float<T>(value);
        value = activate(p.activation, value);
      }
      shared.activated[r][c] = from_float<T>(value);
    }
    __syncthreads();

    const auto stage = [&](int s) {
      if (s < kSteps) {
        stage_tile<kThreads, kOut, Staging<T>::kDepth>(shared.out[s % Staging<T>::kStages], p.weight_out, 0,
                                                       h0 + s * Staging<T>::kDepth);
      }
      async_copy_commit();
    };
    stage(0);
    stage(1);
#pragma unroll 1
    for (int s = 0; s < kSteps; ++s) {
      async_copy_wait<1>();
      __syncthreads();
      stage(s + 2);
      out.template step<false>(&shared.activated[0][s * Staging<T>::kDepth], Config::kHidden + Staging<T>::kPad,
                               &shared.out[s % Staging<T>::kStages][0][0], Staging<T>::kDepth + Staging<T>::kPad);
    }
    __syncthreads();
  }

  out.store(shared.out_sums);
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < Config::kRows * kOut; i += kThreads) {
    const int r = i / kOut, c = i % kOut;
    const int64_t row = row0 + r;
    if (row >= rows || c >= out_size) continue;
    const float value = shared.out_sums[r][c];
    if (p.partial != nullptr) {
      p.partial[(blockIdx.y * rows + row) * out_size + c] = value;
    } else {
      p.z[row * out_size + c] = from_float<T>(value + (p.bias_out != nullptr ? to_float(p.bias_out[c]) : 0.f));
    }
  }
}

constexpr int kElementThreads = 256;

// z = b_out + the sum of the splits, in their order.
template <typename T>
__global__ void __launch_bounds__(kElementThreads)
    combine_splits_kernel(const float* partial, int64_t splits, const T* bias, T* z, int64_t count, int64_t out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kElementThreads + threadIdx.x;
  if (i >= count) return;
  float sum = bias != nullptr ? to_float(bias[i % out]) : 0.f;
  for (int64_t s = 0; s < splits; ++s) sum += partial[s * count + i];
  z[i] = from_float<T>(sum);
}

template <typename T, typename Config>
cudaError_t launch_project(const ProjectForward& a, int64_t splits, cudaStream_t stream) {
  const int64_t blocks = ceil_div<int64_t>(a.rows, Config::kRows);
  if (!fits_grid(blocks) || a.out > kOut || (splits > 1) != (a.partial != nullptr)) return cudaErrorInvalidValue;
  ProjectParameters<T> p;
  p.x = make_matrix<T>(a.x, a.rows, a.features, a.stride_x);
  p.weight_in = make_matrix<T>(a.weight_in, a.hidden_size, a.features, a.stride_in);
  p.weight_out = make_matrix<T>(a.weight_out, a.out, a.hidden_size, a.stride_out);
  p.bias_in = static_cast<const T*>(a.bias_in);
  p.bias_out = static_cast<const T*>(a.bias_out);
  p.z = static_cast<T*>(a.z);
  p.hidden = static_cast<T*>(a.hidden);
  p.partial = a.partial;
  p.rounds = ceil_div(ceil_div<int64_t>(a.hidden_size, Config::kHidden), splits);
  p.activation = a.activation;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(splits));
  const cudaError_t error = launch(project_kernel<T, Config>, grid, kWarp * Config::kWarpsM * Config::kWarpsN,
                                   sizeof(ProjectShared<T, Config>), stream, p);
  if (error != cudaSuccess || splits == 1) return error;
  const int64_t count = a.rows * a.out;
  return launch(combine_splits_kernel<T>, dim3(static_cast<unsigned>(ceil_div<int64_t>(count, kElementThreads))),
                kElementThreads, 0, stream, a.partial, splits, p.bias_out, p.z, count, a.out);
}

template <typename T>
struct GradHiddenShared {
  union {
    Stages<T, kGradRows, 128, true> stages;
    float sums[kGradRows][128 + kPadFloat];
  };
};

template <typename T>
struct GradHiddenParameters {
  Matrix<T> grad, weight_out;
  const T* hidden;
  T* grad_hidden;
  T* activated;
  float* partial;
  Activation activation;
};

// Block (i, j): rows i * kGradRows .., hidden units j * 128 ...
template <typename T>
__global__ void __launch_bounds__(256, 2) grad_hidden_kernel(const GradHiddenParameters<T> p) {
  constexpr int kColumns = 128, kThreads = 256;
  LOSATOK_SHARED(GradHiddenShared<T>, shared);
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kGradRows;
  const int64_t h0 = static_cast<int64_t>(blockIdx.y) * kColumns;
  const int64_t rows = p.grad.rows, hidden_size = p.weight_out.columns;
  {
    TileProduct<T, kGradRows, kColumns, 2, 4> product;
    product.clear();
    accumulate<true>(product, shared.stages, p.grad, row0, p.weight_out, h0);
    product.store(shared.sums);
  }
  __syncthreads();
#pragma unroll 4
  for (int i = threadIdx.x; i < kGradRows * kColumns; i += kThreads) {
    const int r = i / kColumns, c = i % kColumns;
    const int64_t row = row0 + r, h = h0 + c;
    float value = 0.f;
    if (row < rows && h < hidden_size) {
      const float hidden = to_float(p.hidden[row * hidden_size + h]);
      value = shared.sums[r][c] * activate_derivative(p.activation, hidden);
      p.grad_hidden[row * hidden_size + h] = from_float<T>(value);
      if (p.activated != nullptr) {
        p.activated[row * hidden_size + h] = from_float<T>(activate(p.activation, hidden));
      }
    }
    shared.sums[r][c] = value;
  }
  __syncthreads();
  const int64_t h = h0 + threadIdx.x;
  if (p.partial != nullptr && threadIdx.x < kColumns && h < hidden_size) {
    float sum = 0.f;
    for (int r = 0; r < kGradRows; ++r) sum += shared.sums[r][threadIdx.x];
    p.partial[blockIdx.x * hidden_size + h] = sum;
  }
}

}  // namespace

ProjectPlan project_plan(int64_t rows, int64_t hidden_size, int processors) {
  constexpr int64_t kFewRows = 4096;
  if (rows > kFewRows) return {false, 1};
  const int64_t blocks = std::max<int64_t>(1, ceil_div<int64_t>(rows, Small::kRows));
  const int64_t rounds = ceil_div<int64_t>(hidden_size, Small::kHidden);
  // Two blocks for every multiprocessor, as far as there are rounds to share out; no split is left without one.
  const int64_t wanted = std::clamp<int64_t>(ceil_div<int64_t>(2 * processors, blocks), 1, rounds);
  return {true, ceil_div(rounds, ceil_div(rounds, wanted))};
}

cudaError_t project_forward(DType dtype, const ProjectForward& arguments, const ProjectPlan& plan,
                            cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    return plan.small ? launch_project<T, Small>(arguments, plan.splits, stream)
                      : launch_project<T, Large>(arguments, plan.splits, stream);
  });
}

cudaError_t grad_hidden(DType dtype, const GradHidden& a, cudaStream_t stream) {
  return for_dtype(dtype, [&]<typename T>() {
    const int64_t blocks = ceil_div<int64_t>(a.rows, kGradRows), columns = ceil_div<int64_t>(a.hidden_size, 128);
    if (!fits_grid(blocks) || columns > 65535) return cudaErrorInvalidValue;
    GradHiddenParameters<T> p;
    p.grad = make_matrix<T>(a.grad, a.rows, a.out, a.stride_grad);
    p.weight_out = make_matrix<T>(a.weight_out, a.out, a.hidden_size, a.stride_out);
    p.hidden = static_cast<const T*>(a.hidden);
    p.grad_hidden = static_cast<T*>(a.grad_hidden);
    p.activated = static_cast<T*>(a.activated);
    p.partial = a.partial;
    p.activation = a.activation;
    return launch(grad_hidden_kernel<T>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(columns)), 256,
                  sizeof(GradHiddenShared<T>), stream, p);
  });
}

}  // namespace losatok::cuda
