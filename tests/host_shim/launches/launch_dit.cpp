// Launches of dit_attention, layer_norm_modulate and gated_residual.
#include "cuda/dit_attention.h"
#include "cuda/gated_residual.h"
#include "cuda/layer_norm_modulate.h"
#include "launches/launches.h"

namespace launches {

namespace {

// x [2, time, channels] with modulations of clips or of frames.
void modulate(DType dtype, int64_t time, int64_t channels, int64_t offset, bool per_frame) {
  const int64_t count = 2 * time * channels, own = per_frame ? count : 2 * channels;
  Buffer x(dtype, count, offset), branch(dtype, count), grad(dtype, count), shift(dtype, own, offset),
      scale(dtype, own);
  for (Buffer* b : {&x, &branch, &grad, &shift, &scale}) b->random();
  const auto rows = [&](const Buffer& b) { return Clips{b.data(), channels, time * channels, channels}; };
  const auto modulation = [&](const Buffer& b) {
    return Clips{b.data(), channels, per_frame ? time * channels : channels, per_frame ? channels : 0};
  };
  Buffer y(dtype, count), mean(DType::kFloat, 2 * time), rstd(DType::kFloat, 2 * time);
  check(layer_norm_modulate(dtype,
                            {rows(x), modulation(shift), modulation(scale), y.nan().data(), mean.nan().floats(),
                             rstd.nan().floats(), 2, time, 1e-6f},
                            nullptr),
        "layer_norm_modulate");
  y.expect_finite("y");

  const int64_t chunks = modulation_chunks(time);
  Buffer grad_x(dtype, count), by_shift(dtype, own), by_scale(dtype, own);
  Buffer shift_parts(DType::kFloat, 2 * chunks * channels), scale_parts(DType::kFloat, 2 * chunks * channels);
  for (Buffer* b : {&grad_x, &by_shift, &by_scale, &shift_parts, &scale_parts}) b->nan();
  const auto sum = [&](const Buffer& parts, const Buffer& sums) {
    check(sum_chunks(parts.floats(), 2, chunks, channels, dtype, sums.data(), nullptr), "sum_chunks");
  };
  check(layer_norm_modulate_backward(
            dtype,
            {rows(grad), rows(x), modulation(scale), mean.floats(), rstd.floats(), grad_x.data(),
             per_frame ? by_shift.data() : nullptr, per_frame ? by_scale.data() : nullptr,
             per_frame ? nullptr : shift_parts.floats(), per_frame ? nullptr : scale_parts.floats(), 2, time},
            nullptr),
        "layer_norm_modulate_backward");
  if (!per_frame) {
    sum(shift_parts, by_shift);
    sum(scale_parts, by_scale);
  }
  grad_x.expect_finite("grad_x");
  by_shift.expect_finite("grad_shift");
  by_scale.expect_finite("grad_scale");

  check(gated_residual(dtype, {rows(x), rows(branch), modulation(scale), y.nan().data(), 2, time}, nullptr),
        "gated_residual");
  check(gated_residual_backward(
            dtype,
            {rows(grad), rows(branch), modulation(scale), grad_x.nan().data(),
             per_frame ? by_scale.nan().data() : nullptr, per_frame ? nullptr : scale_parts.nan().floats(), 2, time},
            nullptr),
        "gated_residual_backward");
  if (!per_frame) sum(scale_parts, by_scale.nan());
  y.expect_finite("gated y");
  grad_x.expect_finite("grad_branch");
  by_scale.expect_finite("grad_gate");
}

// q, k and v [2, time, 1, size] as views of one projection; the second clip has half of the frames.
void attention(DType dtype, int64_t time, int64_t size, int64_t offset, HeadNorm norm, int64_t rotary) {
  const int64_t lengths[] = {time, time / 2};
  const Frames frames{lengths, 2, time};
  const int64_t count = 2 * time * size, blocks = 2 * attention_blocks(time);
  const auto element = [&](const Buffer& b, int64_t i) {
    return static_cast<char*>(b.data()) + i * (dtype == DType::kFloat ? 4 : 2);
  };
  Buffer packed(dtype, 3 * count, offset), grad(dtype, count), weight(DType::kFloat, size);
  Buffer cos(DType::kFloat, time * rotary / 2), sin(DType::kFloat, time * rotary / 2);
  for (Buffer* b : {&packed, &grad, &weight, &cos, &sin}) b->random();
  const auto view = [&](int64_t i) { return Heads{element(packed, i * size), 3 * time * size, 3 * size, size}; };
  const auto dense = [&](const Buffer& b) { return Heads{b.data(), time * size, size, size}; };
  const Preparation preparation{
      norm, 1e-6f, norm == HeadNorm::kNone ? nullptr : weight.floats(), cos.floats(), sin.floats(), rotary, offset > 0};

  Buffer ready_q(dtype, count), ready_k(dtype, count), out(dtype, count);
  Buffer lse(DType::kFloat, 2 * time), delta(DType::kFloat, 2 * time);
  check(prepare_heads(dtype, {view(0), preparation, ready_q.nan().data(), frames, 1, size}, nullptr), "prepare_heads");
  check(prepare_heads(dtype, {view(1), preparation, ready_k.nan().data(), frames, 1, size}, nullptr), "prepare_heads");
  check(attention_forward(dtype,
                          {view(0), dense(ready_k), view(2), preparation, out.nan().data(), lse.nan().floats(), frames,
                           frames, 1, size},
                          nullptr),
        "attention_forward");
  check(head_products(dtype, {dense(out), dense(grad), delta.nan().floats(), frames, 1, size}, nullptr),
        "head_products");
  out.expect_finite("out");
  delta.expect_finite("delta");

  Buffer grad_q(dtype, count), grad_k(dtype, count), grad_v(dtype, count);
  Buffer q_parts(DType::kFloat, blocks * size), k_parts(DType::kFloat, blocks * size);
  for (Buffer* b : {&grad_q, &grad_k, &grad_v, &q_parts, &k_parts}) b->nan();
  const bool weighted = preparation.weight != nullptr;
  AttentionGradient a{dense(grad),
                      view(0),
                      dense(ready_q),
                      dense(ready_k),
                      view(2),
                      preparation,
                      lse.floats(),
                      delta.floats(),
                      grad_q.data(),
                      nullptr,
                      weighted ? q_parts.floats() : nullptr,
                      frames,
                      frames,
                      1,
                      size};
  check(attention_query_gradient(dtype, a, nullptr), "attention_query_gradient");
  a.x = view(1);
  a.ready = dense(ready_k);
  a.other = dense(ready_q);
  a.grad_x = grad_k.data();
  a.grad_v = grad_v.data();
  a.weight_parts = weighted ? k_parts.floats() : nullptr;
  check(attention_key_gradient(dtype, a, nullptr), "attention_key_gradient");
  grad_q.expect_finite("grad_q");
  grad_k.expect_finite("grad_k");
  grad_v.expect_finite("grad_v");
  if (!weighted) return;
  q_parts.expect_finite("shares of the weight's gradient");
  k_parts.expect_finite("shares of the weight's gradient");
}

}  // namespace

void dit(DType dtype, DType) {
  modulate(dtype, 70, 16, 0, false);
  modulate(dtype, 3, 131, 1, true);
  modulate(dtype, 2, 7, 3, false);
  attention(dtype, 67, 32, 0, HeadNorm::kRms, 32);
  attention(dtype, 9, 72, 1, HeadNorm::kLayer, 20);
  attention(dtype, 65, 128, 0, HeadNorm::kNone, 0);
  attention(dtype, 5, 7, 3, HeadNorm::kRms, 6);
  attention(dtype, 3, 96, 0, HeadNorm::kLayer, 96);
}

}  // namespace launches
