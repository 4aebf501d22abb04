// Launchers of the bottleneck ops. Pointers are to device memory; matrices are row-major with the given row strides in
// elements, or dense where none is given. Every launcher returns the launch's error and waits for nothing.
#pragma once

#include "cuda/launch_types.h"

namespace losatok::cuda {

// z [N, d] = act(x W_in^T + b_in) W_out^T + b_out for d <= kProjectMaxOut; biases may be null.
struct ProjectForward {
  const void* x;           // [N, D], row stride stride_x
  const void* weight_in;   // [H, D]
  const void* bias_in;     // [H] or null
  const void* weight_out;  // [d, H]
  const void* bias_out;    // [d] or null
  void* z;                 // [N, d]
  void* hidden;            // [N, H], the values before the activation, or null
  float* partial;          // [splits, N, d], or null when splits is 1
  int64_t rows, features, hidden_size, out;
  int64_t stride_x, stride_in, stride_out;
  Activation activation;
};

constexpr int64_t kProjectMaxOut = 128;

// How a projection is cut up. Few rows: small tiles, and the hidden units are shared out among `splits` blocks whose
// sums are added in a fixed order afterwards.
struct ProjectPlan {
  bool small;
  int64_t splits;
};
ProjectPlan project_plan(int64_t rows, int64_t hidden_size, int processors);

cudaError_t project_forward(DType dtype, const ProjectForward& arguments, const ProjectPlan& plan, cudaStream_t stream);

// grad_hidden [N, H] = (grad W_out) * act'(hidden), activated = act(hidden), and what each block of kGradRows rows adds
// to the column sums of grad_hidden: partial [ceil(N / kGradRows), H].
struct GradHidden {
  const void* grad;        // [N, d], row stride stride_grad
  const void* weight_out;  // [d, H], row stride stride_out
  const void* hidden;      // [N, H]
  void* grad_hidden;       // [N, H]
  void* activated;         // [N, H] or null
  float* partial;          // [ceil(N / kGradRows), H] or null
  int64_t rows, hidden_size, out;
  int64_t stride_grad, stride_out;
  Activation activation;
};

constexpr int64_t kGradRows = 64;

cudaError_t grad_hidden(DType dtype, const GradHidden& arguments, cudaStream_t stream);

// activated = act(values), elementwise; the two may be the same memory.
cudaError_t activate(DType dtype, const void* values, void* activated, int64_t count, Activation activation,
                     cudaStream_t stream);

// grad *= act'(hidden), elementwise.
cudaError_t multiply_by_derivative(DType dtype, void* grad, const void* hidden, int64_t count, Activation activation,
                                   cudaStream_t stream);

// For rows first_row .. of [B * T]: loss[n] = sum of (normalize(restored) - normalize(target))^2 over the features, and
// with write_grad the gradient of that sum replaces `restored`. Rows past a length give 0 and zeros, whatever they
// hold.
struct NormalizedRows {
  void* restored;      // [rows, features]
  const void* target;  // [rows, features]
  float* loss;         // [rows]
  int64_t rows, features, first_row;
  Frames frames;
  bool write_grad;
};

cudaError_t normalized_rows(DType dtype, DType target_dtype, const NormalizedRows& arguments, cudaStream_t stream);

}  // namespace losatok::cuda
