// Launchers of dit_attention. Pointers are to device memory; heads are [B, rows, H, h] with the given strides in
// elements and contiguous features. Every launcher returns the launch's error and waits for nothing.
#pragma once

#include "cuda/launch_types.h"

namespace losatok::cuda {

struct Heads {
  const void* data;
  int64_t batch_stride, row_stride, head_stride;
};

// Heads of up to this many features.
constexpr int64_t kMaxHeadSize = 128;

enum class HeadNorm : int { kNone = 0, kRms = 1, kLayer = 2 };

// What a head of a query or key goes through before it is multiplied: the norm over its features, the norm's weight
// [h] (or null), and the turn of its first `rotary` features (0: none) by cos and sin [rows, rotary / 2].
struct Preparation {
  HeadNorm norm;
  float eps;
  const float* weight;
  const float* cos;
  const float* sin;
  int64_t rotary;
  bool interleaved;
};

// prepared [B, rows, H, h], dense, zeros past a length; `frames` are those of x.
struct PrepareHeads {
  Heads x;
  Preparation preparation;
  void* prepared;
  Frames frames;
  int64_t heads, head_size;
};
cudaError_t prepare_heads(DType dtype, const PrepareHeads& arguments, cudaStream_t stream);

// products [B, H, rows] = the inner products of heads of a and b, 0 past a length.
struct HeadProducts {
  Heads a, b;
  float* products;
  Frames frames;
  int64_t heads, head_size;
};
cudaError_t head_products(DType dtype, const HeadProducts& arguments, cudaStream_t stream);

// out [B, T, H, h], dense, zeros past a length; lse [B, H, T], -infinity past a length and without a key. q is prepared
// by the kernel, k comes prepared.
struct AttentionForward {
  Heads q, k, v;
  Preparation preparation;
  void* out;
  float* lse;
  Frames queries, keys;
  int64_t heads, head_size;
};
cudaError_t attention_forward(DType dtype, const AttentionForward& arguments, cudaStream_t stream);

// The gradient of one side: `own` rows (x before, ready after its preparation) and what they add to the gradient of the
// norm's weight, weight_parts [B * H * attention_blocks(rows), h] or null. All outputs are dense, zeros past a length.
struct AttentionGradient {
  Heads grad, x, ready, other, v;  // other: the other side's rows, prepared
  Preparation preparation;         // of x
  const float* lse;                // [B, H, T]
  const float* delta;              // [B, H, T], the inner products of rows of out and grad
  void* grad_x;
  void* grad_v;  // of the keys' side only
  float* weight_parts;
  Frames queries, keys;
  int64_t heads, head_size;
};
cudaError_t attention_query_gradient(DType dtype, const AttentionGradient& arguments, cudaStream_t stream);
cudaError_t attention_key_gradient(DType dtype, const AttentionGradient& arguments, cudaStream_t stream);

// Of how many blocks of rows a head's gradient is made.
int64_t attention_blocks(int64_t rows);

}  // namespace losatok::cuda
