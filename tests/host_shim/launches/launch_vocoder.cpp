// Launches of depthwise_conv_norm and polar_istft.
#include "cuda/depthwise_conv_norm.h"
#include "cuda/polar_istft.h"
#include "launches/launches.h"

namespace launches {

namespace {

// x [2, time, channels]; the second clip has half of the frames.
void convolve(DType dtype, int64_t time, int64_t channels, int64_t taps, int64_t offset, bool vectors) {
  const int64_t lengths[] = {time, time / 2};
  const Frames frames{lengths, 2, time};
  const int64_t count = 2 * time * channels, chunks = 2 * conv_chunks(frames);
  Buffer x(dtype, count, offset), grad(dtype, count), weight(dtype, taps * channels, offset);
  Buffer bias(dtype, channels), gain(dtype, channels, offset), shift(dtype, channels);
  for (Buffer* b : {&x, &grad, &weight, &bias, &gain, &shift}) b->random();
  const auto rows = [&](const Buffer& b) { return Clips{b.data(), channels, time * channels, channels}; };
  const auto vector = [&](const Buffer& b) { return vectors ? b.data() : nullptr; };
  const DepthwiseConv conv{rows(x), weight.data(), vector(bias), taps, frames};
  Buffer y(dtype, count), grad_x(dtype, count), by(DType::kFloat, count);
  Buffer parts(DType::kFloat, chunks * (taps + 3) * channels);
  for (Buffer* b : {&y, &grad_x, &by, &parts}) b->nan();
  check(conv_norm(dtype, {conv, vector(gain), vector(shift), 1e-6f, y.data()}, nullptr), "conv_norm");
  y.expect_finite("y");
  check(conv_norm_gradient(dtype, {conv, vector(gain), 1e-6f, rows(grad), by.floats(), parts.floats()}, nullptr),
        "conv_norm_gradient");
  check(conv_gradient(dtype, {conv, by.floats(), grad_x.data(), parts.floats()}, nullptr), "conv_gradient");
  grad_x.expect_finite("grad_x");
  parts.expect_finite("shares of the parameters' gradients");
}

// head [2, time, size + 2]; the second clip has half of the frames. No transforms: spectra and frames stand alone.
void invert(DType dtype, DType other, int64_t time, int size, int hop, int64_t offset) {
  const int64_t lengths[] = {time, time / 2};
  const int64_t features = size + 2, rows = 2 * time;
  const FrameRange range{{lengths, 2, time}, 1, rows - 2};  // without the first frame and the last
  Buffer head(dtype, rows * features, offset), window(DType::kFloat, size), waves(DType::kFloat, rows * size);
  Buffer grad(other, rows * hop), spectrum(DType::kFloat, range.rows * features);
  for (Buffer* b : {&head, &window, &waves, &grad}) b->random();
  const Clips clips{head.data(), features, time * features, features};
  const Overlap overlap{window.floats(), size, hop};
  check(polar_spectrum(dtype, {clips, spectrum.nan().floats(), range}, nullptr), "polar_spectrum");
  spectrum.expect_finite("spectrum");
  Buffer audio(other, rows * hop), by_waves(DType::kFloat, range.rows * size), grad_head(dtype, rows * features);
  audio.random();
  grad_head.random();
  check(overlap_frames(other, {waves.floats(), 0, overlap, audio.data(), range}, nullptr), "overlap_frames");
  audio.expect_finite("audio");
  check(cut_frames(other, {grad.data(), overlap, by_waves.nan().floats(), range}, nullptr), "cut_frames");
  by_waves.expect_finite("waves");
  check(polar_gradient(dtype, {clips, spectrum.floats(), grad_head.data(), range}, nullptr), "polar_gradient");
  grad_head.expect_finite("grad_head");
}

}  // namespace

void vocoder(DType dtype, DType other) {
  convolve(dtype, 19, 16, 7, 0, true);
  convolve(dtype, 9, 13, 7, 3, false);
  convolve(dtype, 5, 12, 3, 1, true);
  convolve(dtype, 3, 1284, 5, 0, true);
  invert(dtype, other, 5, 24, 4, 0);
  invert(dtype, dtype, 3, 12, 12, 1);
}

}  // namespace launches
