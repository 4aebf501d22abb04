// time_relation_forward and gram_energy_forward on the CPU: which algorithm, which threads, and the sums over clips.
#include "cpu/time_relation.h"

#include <ATen/TensorUtils.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <numeric>
#include <optional>
#include <string>

#include "checks/time_relation.h"
#include "cpu/block_products.h"
#include "cpu/plain_tensors.h"

namespace losatok::relation {
namespace {

// Which pairs of a batch count.
struct Pairs {
  std::vector<int64_t> frames;  // of each clip
  int64_t window;               // |i - j| <= window; T for all

  // Pairs of one clip: exact below 2^53.
  double count(int64_t clip) const {
    const double n = static_cast<double>(frames[clip]), w = std::min(static_cast<double>(window), n - 1);
    return n <= 0 ? 0. : n * (2 * w + 1) - w * (w + 1);
  }

  bool band(int64_t clip) const { return window < frames[clip] - 1; }
};

Pairs pairs_of(const std::optional<at::Tensor>& lengths, int64_t batch, int64_t time, int64_t window) {
  Pairs pairs{std::vector<int64_t>(batch, time), window < 0 ? time : std::min(window, time)};
  if (!lengths.has_value()) return pairs;
  const at::Tensor given = lengths->contiguous();
  const int64_t* values = given.const_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b) pairs.frames[b] = std::clamp<int64_t>(values[b], 0, time);
  return pairs;
}

// --- the cost model -------------------------------------------------------------------------------------------------
// Multiply-adds, in units of one of a large float32 product; the factors were measured on 2 cores of an AMD EPYC with
// AVX-512 (torch 2.13, 2026-11-24), for T of 60 to 10000, d = 128 and D = 1280, where the model is within 10 %.

constexpr double kBfloat16 = 1 / 2.2;  // of the tiles of high's Gram matrix, multiplied in bfloat16
constexpr double kTiles = 1.07;        // small products are that much slower
constexpr double kPasses = 60.;        // over the two tiles, per entry
constexpr double kRow = 20.;           // normalising, per element of low and high
constexpr double kThin = 1.1;          // products with one side of d
constexpr double kSquare = 1.22;       // H^T H, including what lies on the wrong side of its diagonal
constexpr int64_t kShort = 128;        // frames up to which the factored form saves little and may lose digits

struct Sizes {
  int64_t low, high;  // d, D
  bool bfloat16_products, need_grad;
};

double tile_entries(const Pairs& pairs, int64_t clip) {
  const int64_t n = pairs.frames[clip];
  return kTiles * (pairs.count(clip) + static_cast<double>(n * panel_rows(n, pairs.window))) / 2;
}

double high_entry(const Sizes& s) { return s.high * (s.bfloat16_products ? kBfloat16 : 1.); }

double tiled_cost(const Pairs& pairs, const Sizes& s) {
  double cost = 0;
  for (size_t b = 0; b < pairs.frames.size(); ++b)
    cost += tile_entries(pairs, b) * (high_entry(s) + s.low * (s.need_grad ? 3. : 1.) + kPasses) +
            kRow * pairs.frames[b] * (s.low + s.high);
  return cost;
}

double energy_over_tiles_cost(const Pairs& pairs, int64_t clip, const Sizes& s) {
  return tile_entries(pairs, clip) * (high_entry(s) + kPasses / 2);
}

double energy_over_features_cost(int64_t frames, const Sizes& s) {
  return kSquare / 2 * static_cast<double>(frames) * s.high * s.high;
}

double factored_cost(const Pairs& pairs, const Sizes& s, bool energy_given) {
  double cost = 0;
  for (size_t b = 0; b < pairs.frames.size(); ++b) {
    const int64_t n = pairs.frames[b];
    cost += n * (kRow * (s.low + s.high) + (s.need_grad ? 2. : 1.) * kThin * s.low * (s.low + s.high));
    if (!energy_given) cost += std::min(energy_over_tiles_cost(pairs, b, s), energy_over_features_cost(n, s));
  }
  return cost;
}

// --- clips and threads ----------------------------------------------------------------------------------------------

// Whether the clips keep the threads busy when each clip is one thread's: the dearest first, each to whoever is free.
bool clips_fill_threads(std::vector<double> costs) {
  const int threads = at::in_parallel_region() ? 1 : at::get_num_threads();
  if (threads == 1) return true;
  std::sort(costs.rbegin(), costs.rend());
  std::vector<double> busy(threads, 0.);
  for (const double cost : costs) *std::min_element(busy.begin(), busy.end()) += cost;
  const double total = std::accumulate(costs.begin(), costs.end(), 0.);
  return *std::max_element(busy.begin(), busy.end()) * threads <= 1.15 * total;
}

// Calls each(workspace, clip) for every clip that has frames. What it computes may not depend on the workspace.
template <class R>
void for_each_clip(const Pairs& pairs, bool clips_in_parallel,
                   const std::function<void(Workspace<R>&, int64_t)>& each) {
  std::vector<int64_t> order;
  for (size_t b = 0; b < pairs.frames.size(); ++b)
    if (pairs.frames[b] > 0) order.push_back(b);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return pairs.frames[a] > pairs.frames[b]; });
  const int64_t clips = order.size();
  const auto worker = [&](std::atomic<int64_t>& next) {
    Workspace<R> own;
    for (int64_t k = next++; k < clips; k = next++) each(own, order[k]);
  };
  std::atomic<int64_t> next{0};
  if (!clips_in_parallel) return worker(next);
  at::parallel_for(0, std::min<int64_t>(clips, at::get_num_threads()), 1, [&](int64_t begin, int64_t end) {
    for (; begin < end; ++begin) worker(next);
  });
}

template <class R>
Clip<R> clip_of(Workspace<R>& own, const at::Tensor& low, const at::Tensor& high, const Pairs& pairs, int64_t b,
                bool bfloat16_products) {
  const int64_t n = pairs.frames[b];
  R* inverse_high = own.inverse_high.reserve(n);
  Clip<R> clip{high.select(0, b), bfloat16_products, n, std::min(pairs.window, n), nullptr, 0, nullptr, inverse_high};
  Features<R>(own, clip.high, n, bfloat16_products).inverse_norms(inverse_high);
  if (const auto other = shortened(clip.high, n, inverse_high)) {
    clip.high = other->rows;
    Features<R>(own, clip.high, n, bfloat16_products).inverse_norms(inverse_high);
  }
  if (!low.defined()) return clip;
  const int64_t d = low.size(2);
  const at::Tensor rows = low.select(0, b);
  R *unit = own.unit.reserve(n * d), *inverse_low = own.inverse_low.reserve(n);
  const auto normalize = [&](const at::Tensor& from) {
    at::parallel_for(0, n, 256, [&](int64_t begin, int64_t end) {
      LOSATOK_SIMD(unit_rows<R>)(from.const_data_ptr<R>() + begin * d, end - begin, d, d, kEps<R>, unit + begin * d,
                                 inverse_low + begin);
    });
  };
  normalize(rows);
  if (const auto other = shortened(rows, n, inverse_low)) {
    normalize(other->rows);
    // The gradient is that of the row as it was given, before it was shortened.
    for (int64_t i = 0; i < n; ++i) inverse_low[i] = std::ldexp(inverse_low[i], -other->exponents[i]);
  }
  clip.unit = unit;
  clip.low_size = d;
  clip.inverse_low = inverse_low;
  return clip;
}

template <class R>
double energy_of(Workspace<R>& own, Clip<R> clip, const Pairs& pairs, int64_t b, const Sizes& s) {
  clip.unit = nullptr;
  const bool over_features =
      !pairs.band(b) && energy_over_features_cost(clip.frames, s) < energy_over_tiles_cost(pairs, b, s);
  return over_features ? energy_over_features(own, clip) : tiled(own, clip, R(0), static_cast<R*>(nullptr));
}

// The relative cost of each clip, for sharing clips among threads.
std::vector<double> clip_costs(const Pairs& pairs) {
  std::vector<double> costs;
  for (size_t b = 0; b < pairs.frames.size(); ++b) costs.push_back(pairs.count(b));
  return costs;
}

template <class R>
std::tuple<at::Tensor, at::Tensor> loss_and_gradient(const at::Tensor& low, const at::Tensor& high, const Pairs& pairs,
                                                     const Sizes& s, bool by_factors, const at::Tensor& energies) {
  const int64_t batch = low.size(0), time = low.size(1);
  const auto options = low.options().dtype(c10::CppTypeToScalarType<R>::value);
  at::Tensor grad = s.need_grad ? at::zeros(low.sizes(), options) : at::empty({0}, options);
  R* grad_data = s.need_grad ? grad.mutable_data_ptr<R>() : nullptr;
  const at::Tensor rows = low.to(options.dtype()).contiguous();
  double count = 0;
  for (int64_t b = 0; b < batch; ++b) count += pairs.count(b);
  const R scale = static_cast<R>(4. / std::max(count, 1.));
  std::vector<double> sums(batch, 0.);
  for_each_clip<R>(pairs, clips_fill_threads(clip_costs(pairs)), [&](Workspace<R>& own, int64_t b) {
    const Clip<R> clip = clip_of<R>(own, rows, high, pairs, b, s.bfloat16_products);
    R* const to = grad_data ? grad_data + b * time * s.low : nullptr;
    if (by_factors) {
      const double energy =
          energies.defined() ? static_cast<double>(energies.const_data_ptr<R>()[b]) : energy_of(own, clip, pairs, b, s);
      sums[b] = factored(own, clip, energy, scale, to);
    } else {
      sums[b] = tiled(own, clip, scale, to);
    }
  });
  double loss = std::accumulate(sums.begin(), sums.end(), 0.) / std::max(count, 1.);
  if (loss < 0) loss = 0;  // rounding in the factored form; a NaN stays one
  at::Tensor result = at::empty({}, options);
  *result.mutable_data_ptr<R>() = static_cast<R>(loss);
  return {result, grad};
}

template <class R>
at::Tensor energies_of(const at::Tensor& high, const Pairs& pairs, const Sizes& s) {
  at::Tensor result = at::zeros({high.size(0)}, high.options().dtype(c10::CppTypeToScalarType<R>::value));
  R* energies = result.mutable_data_ptr<R>();
  for_each_clip<R>(pairs, clips_fill_threads(clip_costs(pairs)), [&](Workspace<R>& own, int64_t b) {
    const Clip<R> clip = clip_of<R>(own, at::Tensor(), high, pairs, b, s.bfloat16_products);
    energies[b] = static_cast<R>(energy_of(own, clip, pairs, b, s));
  });
  return result;
}

at::Tensor ready(const at::Tensor& high, bool bfloat16_products) {
  const at::Tensor plain = high.detach();
  return bfloat16_products && plain.size(1) > 0 && (plain.stride(2) != 1 || plain.stride(1) < plain.size(2))
             ? plain.contiguous()
             : plain;
}

std::tuple<at::Tensor, at::Tensor> time_relation_forward(const at::Tensor& low, const at::Tensor& high,
                                                         const std::optional<at::Tensor>& lengths, int64_t window,
                                                         c10::string_view algorithm,
                                                         const std::optional<at::Tensor>& high_energy, bool need_grad) {
  check::time_relation_forward(low, high, lengths, window, algorithm, high_energy);
  const PlainTensors guard;
  const Pairs pairs = pairs_of(lengths, low.size(0), low.size(1), window);
  const bool bfloat16_products = low.scalar_type() == at::kBFloat16 && multiplies_bfloat16();
  const Sizes sizes{low.size(2), high.size(2), bfloat16_products, need_grad};
  bool band = false, any_long = false;
  for (size_t b = 0; b < pairs.frames.size(); ++b) {
    band |= pairs.band(b);
    any_long |= pairs.frames[b] > kShort;
  }
  const bool by_factors =
      algorithm == "factored" || (algorithm == "auto" && !band && any_long &&
                                  factored_cost(pairs, sizes, high_energy.has_value()) < tiled_cost(pairs, sizes));
  const auto wide = check::wide_type(low.scalar_type());
  const at::Tensor energies = high_energy.has_value() ? high_energy->detach().to(wide).contiguous() : at::Tensor();
  const at::Tensor features = ready(high, bfloat16_products);
  return wide == at::kDouble ? loss_and_gradient<double>(low.detach(), features, pairs, sizes, by_factors, energies)
                             : loss_and_gradient<float>(low.detach(), features, pairs, sizes, by_factors, energies);
}

at::Tensor gram_energy_forward(const at::Tensor& high, const std::optional<at::Tensor>& lengths, int64_t window) {
  check::gram_energy_forward(high, lengths);
  const PlainTensors guard;
  const Pairs pairs = pairs_of(lengths, high.size(0), high.size(1), window);
  const bool bfloat16_products = high.scalar_type() == at::kBFloat16 && multiplies_bfloat16();
  const Sizes sizes{0, high.size(2), bfloat16_products, false};
  const at::Tensor features = ready(high, bfloat16_products);
  return high.scalar_type() == at::kDouble ? energies_of<double>(features, pairs, sizes)
                                           : energies_of<float>(features, pairs, sizes);
}

}  // namespace
}  // namespace losatok::relation

TORCH_LIBRARY_IMPL(losatok, CPU, m) {
  m.impl("time_relation_forward", &losatok::relation::time_relation_forward);
  m.impl("gram_energy_forward", &losatok::relation::gram_energy_forward);
}
