// polar_istft and depthwise_conv_norm on the CPU: over chunks of frames, so that what lies between two steps stays in
// the cache. A chunk's size does not depend on the number of threads, and so neither does a result.
#include "cpu/simd/vocoder.h"

#include <torch/library.h>

#include <tuple>

#include "checks/vocoder.h"
#include "cpu/bottleneck.h"
#include "cpu/fourier.h"

namespace losatok::vocoder {
namespace {

using at::Tensor;
using bottleneck::by_type;
using bottleneck::data;
using bottleneck::OptionalTensor;
using check::wide_type;

// As the kernels take it: rows without gaps, and float16 as float32.
Tensor prepared(const Tensor& x, at::ScalarType type) {
  const Tensor same = x.scalar_type() == type ? x : x.to(type);
  return same.size(-1) <= 1 || same.stride(-1) == 1 ? same : same.contiguous();
}
Tensor prepared(const Tensor& x) { return prepared(x, x.scalar_type() == at::kHalf ? at::kFloat : x.scalar_type()); }

template <class T>
T* row(const Tensor& x, int64_t clip, int64_t frame) {  // of x [B, T, C]
  return static_cast<T*>(x.data_ptr()) + clip * x.stride(0) + frame * x.stride(1);
}

// Frames (or pieces of a waveform) begin..end of a clip that has so many frames.
struct Chunk {
  int64_t clip, frames, begin, end;
};

class Clips {
 public:
  Clips(const Tensor& x, const OptionalTensor& lengths) : frames_(x.size(0), x.size(1)) {
    if (!lengths || !lengths->defined()) return;
    const Tensor given = lengths->contiguous();
    for (int64_t b = 0; b < x.size(0); ++b)
      frames_[b] = std::clamp<int64_t>(given.const_data_ptr<int64_t>()[b], 0, x.size(1));
  }

  int64_t frames(int64_t clip) const { return frames_[clip]; }

  // The chunks of size from first to last(frames) of each clip.
  template <class Last>
  std::vector<Chunk> chunks(int64_t size, int64_t first, Last&& last) const {
    std::vector<Chunk> chunks;
    for (size_t b = 0; b < frames_.size(); ++b) {
      if (frames_[b] == 0) continue;
      const int64_t end = last(frames_[b]);
      for (int64_t at = first; at < end; at += size)
        chunks.push_back({static_cast<int64_t>(b), frames_[b], at, std::min(at + size, end)});
    }
    return chunks;
  }
  std::vector<Chunk> chunks(int64_t size) const {
    return chunks(size, 0, [](int64_t frames) { return frames; });
  }

 private:
  std::vector<int64_t> frames_;
};

// work(begin, end) on chunks begin..end, which are worth a thread of their own.
template <class Work>
void in_parallel(int64_t chunks, Work&& work) {
  at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
    PlainTensors guard;
    work(begin, end);
  });
}

// What lies past the clips of x [B, T, ...] becomes zero.
void clear_past(const Tensor& x, const Clips& clips, int64_t factor = 1) {
  for (int64_t b = 0; b < x.size(0); ++b) {
    const int64_t begin = clips.frames(b) * factor;
    if (begin < x.size(1)) x.select(0, b).narrow(0, begin, x.size(1) - begin).zero_();
  }
}

// --- polar_istft ----------------------------------------------------------------------------------------------------

constexpr int64_t kFrames = 64;  // of a chunk: at 1280 samples, spectrum and frames take 0.7 MB
constexpr double kLeastEnvelope = 1e-11;

// The waveform in pieces of hop samples, counted before trimming: piece j is where frames j - overlap + 1 .. j of its
// clip meet.
template <class W>
struct Pieces {
  const W* window;
  int64_t size, hop, overlap, trim;
  Tensor interior, edge;  // inverse envelopes: where all frames meet, and room for one elsewhere

  Pieces(const Tensor& window_, int64_t hop_)
      : window(window_.const_data_ptr<W>()),
        size(window_.size(0)),
        hop(hop_),
        overlap(size / hop_),
        trim((size - hop_) / 2),
        interior(at::empty({hop_}, window_.options())) {
    LOSATOK_SIMD(inverse_envelope<W>)
    (window, hop, 0, overlap, static_cast<W>(kLeastEnvelope), interior.mutable_data_ptr<W>());
  }

  int64_t first() const { return trim / hop; }
  int64_t end(int64_t frames) const { return (trim + frames * hop - 1) / hop + 1; }

  // Frame j - f is in piece j for f in [first_frame, end_frame).
  int64_t first_frame(int64_t j, int64_t frames) const { return std::max<int64_t>(0, j - frames + 1); }
  int64_t end_frame(int64_t j) const { return std::min(overlap, j + 1); }

  // What is left of piece j after trimming: begin..end within it.
  int64_t begin_within(int64_t j) const { return std::clamp<int64_t>(trim - j * hop, 0, hop); }
  int64_t end_within(int64_t j, int64_t frames) const {
    return std::clamp<int64_t>(trim + (frames - j) * hop, begin_within(j), hop);
  }

  const W* inverse(int64_t j, int64_t frames) {
    const int64_t first = first_frame(j, frames), last = end_frame(j);
    if (first == 0 && last == overlap) return interior.const_data_ptr<W>();
    if (!edge.defined()) edge = at::empty_like(interior);
    W* own = edge.mutable_data_ptr<W>();
    LOSATOK_SIMD(inverse_envelope<W>)(window, hop, first, last, static_cast<W>(kLeastEnvelope), own);
    return own;
  }
};

Tensor polar_istft_forward(const Tensor& head, const Tensor& window, int64_t hop, const OptionalTensor& lengths) {
  PlainTensors guard;
  check::polar_istft_forward(head, window, hop, lengths);
  const at::ScalarType result_type = at::promote_types(head.scalar_type(), window.scalar_type());
  const at::ScalarType wide = wide_type(result_type);
  const Tensor from = wide == at::kDouble ? prepared(head, wide) : prepared(head);
  const Tensor times = prepared(window, wide);
  const Clips clips(head, lengths);
  const Tensor audio = at::empty({head.size(0), head.size(1) * hop}, times.options());
  by_type(from.scalar_type(), [&]<class T>() {
    using W = wide_t<T>;
    const Pieces<W> shared(times, hop);
    const RealFourier<W> fourier(shared.size);
    const auto chunks = clips.chunks(kFrames, shared.first(), [&](int64_t frames) { return shared.end(frames); });
    in_parallel(chunks.size(), [&](int64_t begin, int64_t end) {
      Pieces<W> pieces = shared;
      const int64_t size = pieces.size, bins = size / 2 + 1, overlap = pieces.overlap;
      const int64_t most = kFrames + overlap - 1;
      const Buffer<W> work = fourier.work(), spectra(most * 2 * bins), waves(most * size);
      for (; begin < end; ++begin) {
        const auto [clip, frames, first, last] = chunks[begin];
        const int64_t from_frame = std::max<int64_t>(0, first - overlap + 1), to_frame = std::min(frames, last);
        const int64_t rows = to_frame - from_frame;
        LOSATOK_SIMD(polar<T>)(row<T>(from, clip, from_frame), from.stride(1), rows, bins, spectra);
        LOSATOK_SIMD(inverse_fourier<W>)(fourier.tables(work), spectra, rows, waves);
        for (int64_t j = first; j < last; ++j) {
          const int64_t i = pieces.begin_within(j), count = pieces.end_within(j, frames) - i;
          LOSATOK_SIMD(overlap<W>)
          (waves + (j - from_frame) * size + i, size, pieces.window + i, hop, pieces.first_frame(j, frames),
           pieces.end_frame(j), pieces.inverse(j, frames) + i, count,
           data<W>(audio) + clip * audio.size(1) + j * hop + i - pieces.trim);
        }
      }
    });
  });
  clear_past(audio, clips, hop);
  return audio.to(result_type);
}

Tensor polar_istft_backward(const Tensor& grad, const Tensor& head, const Tensor& window, int64_t hop,
                            const OptionalTensor& lengths) {
  PlainTensors guard;
  check::polar_istft_backward(grad, head, window, hop, lengths);
  const at::ScalarType wide = wide_type(at::promote_types(head.scalar_type(), window.scalar_type()));
  const Tensor from = wide == at::kDouble ? prepared(head, wide) : prepared(head);
  const Tensor times = prepared(window, wide), by = prepared(grad, wide);
  const Clips clips(head, lengths);
  const Tensor grad_head = at::empty(head.sizes(), from.options());
  by_type(from.scalar_type(), [&]<class T>() {
    using W = wide_t<T>;
    const Pieces<W> shared(times, hop);
    const RealFourier<W> fourier(shared.size);
    const auto chunks = clips.chunks(kFrames);
    in_parallel(chunks.size(), [&](int64_t begin, int64_t end) {
      Pieces<W> pieces = shared;
      const int64_t size = pieces.size, bins = size / 2 + 1;
      const Buffer<W> work = fourier.work(), waves(kFrames * size), transformed(kFrames * 2 * bins);
      for (; begin < end; ++begin) {
        const auto [clip, frames, first, last] = chunks[begin];
        std::fill_n(static_cast<W*>(waves), (last - first) * size, W(0));  // for the samples that are trimmed
        for (int64_t j = std::max(first, pieces.first()); j < std::min(last - 1 + pieces.overlap, pieces.end(frames));
             ++j) {
          const int64_t i = pieces.begin_within(j), count = pieces.end_within(j, frames) - i;
          const W* inverse = pieces.inverse(j, frames) + i;
          const W* along = row<W>(by.unsqueeze(2), clip, j * hop + i - pieces.trim);
          for (int64_t f = std::max<int64_t>(0, j - last + 1); f < std::min(pieces.overlap, j - first + 1); ++f)
            LOSATOK_SIMD(product_of_three<W>)
          (along, pieces.window + f * hop + i, inverse, count, waves + (j - f - first) * size + f * hop + i);
        }
        LOSATOK_SIMD(forward_fourier<W>)(fourier.tables(work), waves, last - first, transformed);
        LOSATOK_SIMD(polar_backward<T>)
        (row<T>(from, clip, first), from.stride(1), last - first, bins, transformed, row<T>(grad_head, clip, first));
      }
    });
  });
  clear_past(grad_head, clips);
  return grad_head.to(head.scalar_type());
}

// --- depthwise_conv_norm --------------------------------------------------------------------------------------------

constexpr int64_t kForwardRows = 32;    // of a chunk: at 1280 channels, what is convolved takes 160 KB
constexpr int64_t kBackwardRows = 128;  // of a chunk, which has sums of its own

// A vector of parameters [C] in the wide dtype, filled with `value` where it is None.
Tensor vector_of(const OptionalTensor& given, double value, int64_t channels, at::ScalarType type) {
  return check::given(given) ? given->to(type).contiguous() : at::full({channels}, value, type);
}

// Tap by tap, [k, C], in the wide dtype.
Tensor taps_of(const Tensor& weight, at::ScalarType type) { return weight.squeeze(1).t().to(type).contiguous(); }

// Pointers to the frames [begin - half, end + half) of a clip, and to zeros where the clip has no such frame.
template <class T>
void find_rows(const Tensor& x, const Chunk& chunk, int64_t begin, int64_t end, int64_t half, const T* zeros,
               std::vector<const T*>& rows) {
  rows.clear();
  for (int64_t t = begin - half; t < end + half; ++t)
    rows.push_back(t < 0 || t >= chunk.frames ? zeros : row<const T>(x, chunk.clip, t));
}

Tensor depthwise_conv_norm_forward(const Tensor& x, const Tensor& conv_weight, const OptionalTensor& conv_bias,
                                   const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, double eps,
                                   const OptionalTensor& lengths) {
  PlainTensors guard;
  check::depthwise_conv_norm_forward(x, conv_weight, conv_bias, norm_weight, norm_bias, lengths);
  const int64_t channels = x.size(2), taps = conv_weight.size(2), half = taps / 2;
  const at::ScalarType wide = wide_type(x.scalar_type());
  const Tensor from = prepared(x), weight = taps_of(conv_weight, wide), bias = vector_of(conv_bias, 0., channels, wide),
               gain = vector_of(norm_weight, 1., channels, wide), shift = vector_of(norm_bias, 0., channels, wide),
               zeros = at::zeros({channels}, from.options());
  const Tensor y = at::empty(x.sizes(), from.options());
  const Clips clips(x, lengths);
  by_type(from.scalar_type(), [&]<class T>() {
    using W = wide_t<T>;
    const auto chunks = clips.chunks(kForwardRows);
    in_parallel(chunks.size(), [&](int64_t begin, int64_t end) {
      const Tensor convolved = at::empty({kForwardRows, channels}, weight.options());
      std::vector<const T*> rows;
      for (; begin < end; ++begin) {
        const Chunk& chunk = chunks[begin];
        const int64_t count = chunk.end - chunk.begin;
        find_rows<T>(from, chunk, chunk.begin, chunk.end, half, data<T>(zeros), rows);
        LOSATOK_SIMD(depthwise<T>)
        (rows.data(), data<W>(weight), data<W>(bias), count, taps, channels, data<W>(convolved));
        LOSATOK_SIMD(normalize<T>)
        (data<W>(convolved), data<W>(gain), data<W>(shift), static_cast<W>(eps), count, channels,
         row<T>(y, chunk.clip, chunk.begin));
      }
    });
  });
  clear_past(y, clips);
  return y.to(x.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> depthwise_conv_norm_backward(
    const Tensor& grad, const Tensor& x, const Tensor& conv_weight, const OptionalTensor& conv_bias,
    const OptionalTensor& norm_weight, double eps, const OptionalTensor& lengths, bool need_x, bool need_parameters) {
  PlainTensors guard;
  check::depthwise_conv_norm_backward(grad, x, conv_weight, conv_bias, norm_weight, lengths);
  const int64_t channels = x.size(2), taps = conv_weight.size(2), half = taps / 2;
  const at::ScalarType type = x.scalar_type(), wide = wide_type(type);
  const Tensor from = prepared(x), by = prepared(grad), weight = taps_of(conv_weight, wide), flipped = weight.flip(0),
               bias = vector_of(conv_bias, 0., channels, wide), gain = vector_of(norm_weight, 1., channels, wide),
               no_bias = at::zeros_like(bias), zeros = at::zeros({channels}, from.options());
  const Tensor grad_x = at::empty(need_x ? x.sizes() : at::IntArrayRef{0}, from.options());
  const Clips clips(x, lengths);
  const auto chunks = clips.chunks(kBackwardRows);
  const int64_t count = chunks.size();
  // Of each chunk: the taps', the convolution's bias, the norm's weight and its bias.
  const Tensor sums = at::zeros({need_parameters ? count : 0, taps + 3, channels}, weight.options());
  by_type(from.scalar_type(), [&]<class T>() {
    using W = wide_t<T>;
    in_parallel(count, [&](int64_t begin, int64_t end) {
      const Tensor buffer = at::empty({kBackwardRows + 2 * half, channels}, weight.options());
      std::vector<const T*> rows;
      std::vector<const W*> grad_rows;
      for (; begin < end; ++begin) {
        const Chunk& chunk = chunks[begin];
        // The gradient by x needs that by what was convolved, half the taps to either side.
        const int64_t first = std::max<int64_t>(0, chunk.begin - half), last = std::min(chunk.frames, chunk.end + half);
        W* convolved = data<W>(buffer) + (first - chunk.begin + half) * channels;
        W* own = need_parameters ? data<W>(sums) + begin * (taps + 3) * channels : nullptr;
        find_rows<T>(from, chunk, first, last, half, data<T>(zeros), rows);
        LOSATOK_SIMD(depthwise<T>)
        (rows.data(), data<W>(weight), data<W>(bias), last - first, taps, channels, convolved);
        LOSATOK_SIMD(normalize_backward<T>)
        (convolved, row<T>(by, chunk.clip, first), by.stride(1), data<W>(gain), static_cast<W>(eps), last - first,
         channels, chunk.begin - first, chunk.end - first, own ? own + (taps + 1) * channels : nullptr,
         own ? own + (taps + 2) * channels : nullptr);
        if (own) {
          LOSATOK_SIMD(depthwise_outer<T>)
          (rows.data() + (chunk.begin - first), data<W>(buffer) + half * channels, chunk.end - chunk.begin, taps,
           channels, own, own + taps * channels);
        }
        if (need_x) {
          buffer.narrow(0, 0, first - chunk.begin + half).zero_();
          buffer.narrow(0, last - chunk.begin + half, chunk.end + half - last).zero_();
          grad_rows.clear();
          for (int64_t i = 0; i < chunk.end - chunk.begin + 2 * half; ++i)
            grad_rows.push_back(data<W>(buffer) + i * channels);
          LOSATOK_SIMD(depthwise_backward<T>)
          (grad_rows.data(), data<W>(flipped), data<W>(no_bias), chunk.end - chunk.begin, taps, channels,
           row<T>(grad_x, chunk.clip, chunk.begin));
        }
      }
    });
  });
  if (need_x) clear_past(grad_x, clips);
  if (!need_parameters) {
    const auto none = [&] { return at::empty({0}, x.options()); };
    return {grad_x.to(type), none(), none(), none(), none()};
  }
  const Tensor total = sums.sum(0);
  const auto vector = [&](int64_t index) { return total.select(0, index).to(type, false, true); };
  const Tensor grad_weight = total.narrow(0, 0, taps).t().unsqueeze(1).to(type).contiguous();
  return {grad_x.to(type), grad_weight, vector(taps), vector(taps + 1), vector(taps + 2)};
}

}  // namespace
}  // namespace losatok::vocoder

TORCH_LIBRARY_IMPL(losatok, CPU, m) {
  m.impl("polar_istft_forward", &losatok::vocoder::polar_istft_forward);
  m.impl("polar_istft_backward", &losatok::vocoder::polar_istft_backward);
  m.impl("depthwise_conv_norm_forward", &losatok::vocoder::depthwise_conv_norm_forward);
  m.impl("depthwise_conv_norm_backward", &losatok::vocoder::depthwise_conv_norm_backward);
}
