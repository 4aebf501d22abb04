// The search for nearest codes: products on the matrix units propose candidates, differences decide.
//
// A score, half a squared distance less the row's energy, is known to be off by at most `unit` times the product of the
// norms. A lane is the codes of one remainder modulo kLanes; the scan keeps, per row and lane, the least lower bound,
// the tile it came from, and the next least. What could be the nearest within the bounds is decided by distances_to: a
// lane's proposal, all of a lane where its next could be too, or all codes where bounds are of no use.
#include "cuda/quantize.cuh"
#include "cuda/tile_product.cuh"

namespace losatok::cuda {
namespace {

constexpr int kN = kCodeTile;
constexpr int kLanes = kWarp;
constexpr int kOfLane = kN / kLanes;  // codes of a lane in one tile
constexpr int kWarpsM = 2, kWarpsN = 4;
constexpr int kThreads = kWarp * kWarpsM * kWarpsN;
constexpr int kWarps = kThreads / kWarp;
constexpr int64_t kSplitFeatures = 32;  // up to so many, a number is two float16: codes lie close

constexpr float kNormMargin = 4e-6f;  // what half squared norms are lowered by, relative: more than their rounding
constexpr float kUnderflow = 4e-37f;  // what underflow takes off a feature's share of a bound, at most
constexpr float kRoundUp = 1.f + 1e-6f;
constexpr float kSearchableNorm = 6e18f;  // products of longer rows with the longest codes would overflow

// Rows of a block, the most features that they may have, and how many blocks a multiprocessor should hold.
struct Narrow {
  static constexpr int kRows = 64, kWidth = 128, kBlocks = 2;
};
struct Wide {
  static constexpr int kRows = 32, kWidth = kSearchFeatures, kBlocks = 1;
};

int64_t parts_of(int64_t features) { return features <= kSplitFeatures ? 3 : 1; }

// The power of two at or below x, within 2^-100 .. 2^126.
__device__ __forceinline__ float power_of_two(float x) {
  int exponent = 0;
  frexpf(fmaxf(x, 7.888609052210118e-31f), &exponent);
  return ldexpf(1.f, exponent - 1 < 126 ? exponent - 1 : 126);
}

// Column `column` of the operand of a row of values, which are below 2 in size: the values in float16, or in three
// parts, whose products with each other's are those of two float16 to a number but for the least of the four: first,
// second, first of rows meet first, first, second of codes.
template <bool kCode>
__device__ __forceinline__ Half operand(float value, int64_t part) {
  const Half first = from_float<Half>(value);
  if (part == (kCode ? 2 : 1)) return from_float<Half>(value - to_float(first));
  return first;
}

constexpr int kSamples = 512;

struct CentreShared {
  bool finite[kSamples];
};

// Block q: the mean of some 256 finite codes of stage q.
__global__ void __launch_bounds__(kThreads) centre_kernel(const PreparedCodes p) {
  LOSATOK_SHARED(CentreShared, shared);
  const float* codes = p.codes + blockIdx.x * p.count * p.features;
  const int64_t step = p.count / (kSamples / 2) > 1 ? p.count / (kSamples / 2) : 1;
  const int samples = static_cast<int>((p.count + step - 1) / step);
  for (int s = threadIdx.x / kWarp; s < samples; s += kWarps) {
    int bad = 0;
    for (int64_t j = threadIdx.x % kWarp; j < p.features; j += kWarp) {
      bad |= !(fabsf(codes[s * step * p.features + j]) <= kLargest);
    }
    bad = warp_max(bad);
    if (threadIdx.x % kWarp == 0) shared.finite[s] = !bad;
  }
  __syncthreads();
  for (int64_t j = threadIdx.x; j < p.features; j += kThreads) {
    double sum = 0.;
    int count = 0;
    for (int s = 0; s < samples; ++s) {
      if (!shared.finite[s]) continue;
      sum += codes[s * step * p.features + j];
      ++count;
    }
    p.centres[blockIdx.x * p.features + j] = static_cast<float>(sum / (count ? count : 1));
  }
}

// A warp per code of [padded], grid (blocks of codes, stages).
__global__ void __launch_bounds__(kThreads)
    prepare_kernel(const PreparedCodes p, int64_t padded, int64_t depth, int64_t parts) {
  const int64_t k = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarp, stage = blockIdx.y;
  const int lane = threadIdx.x % kWarp;
  if (k >= padded) return;  // a whole warp; no barrier follows
  const float* centre = p.centres + stage * p.features;
  const float* code = p.codes + (stage * p.count + k) * p.features;
  const int64_t features = k < p.count ? p.features : 0;
  int bad = k >= p.count;
  double squares = 0.;
  float most = 0.f;
  for (int64_t j = lane; j < features; j += kWarp) {
    const float c = code[j], value = c - centre[j];
    bad |= !(fabsf(c) <= kLargest);
    squares += static_cast<double>(value) * value;
    most = fmaxf(most, fabsf(value));
  }
  bad = warp_max(bad);
  squares = warp_sum(squares);
  most = warp_max(most);
  const bool overflows = !(squares < 6.8e38);  // also where the centre did
  const bool whole = !bad && !overflows;
  const float scale = power_of_two(whole ? most : 0.f);
  const float inverse = 1.f / scale;
  Half* to = static_cast<Half*>(p.rounded) + (stage * padded + k) * depth;
  for (int64_t j = lane; j < depth; j += kWarp) {
    const int64_t part = j / p.features, feature = j % p.features;
    const bool inside = whole && part < parts;
    to[j] = operand<true>(inside ? (code[feature] - centre[feature]) * inverse : 0.f, part);
  }
  if (lane != 0) return;  // nothing collective follows
  const int64_t at = stage * padded + k;
  const float half = static_cast<float>(.5 * squares * (1. - kNormMargin)) - kUnderflow * p.features;
  // A finite code whose square overflows lets no bound decide.
  p.half_norms[at] = bad ? kInfinity : (overflows ? -kInfinity : half);
  p.norms[at] = whole ? static_cast<float>(sqrt(squares)) * kRoundUp : 0.f;
  p.scales[at] = scale;
}

template <typename Config>
struct SearchShared {
  float residual[Config::kRows][Config::kWidth];
  alignas(32) Half x[Config::kRows][Config::kWidth + Staging<Half>::kPad];
  union {  // used in turn, with barriers between
    alignas(32) Half codes[Staging<Half>::kStages][kN][Staging<Half>::kDepth + Staging<Half>::kPad];
    struct {
      float best[Config::kRows][kLanes];
      float second[Config::kRows][kLanes];
      int tile[Config::kRows][kLanes];
    } state;
  };
  alignas(32) float scores[Config::kRows][kN + 4];
  float half_norms[kN], norms[kN], scales[kN];  // of the tile's codes
  float norm[Config::kRows], scale[Config::kRows];
};

struct SearchParameters {
  CodedRows rows;
  PreparedCodes ready;
  int64_t* indices;
  float* distances;
  int64_t per_split, padded, depth, parts;
  float unit, exact;  // exact: 1, or 0 to take the least bound at its word
};

// A row's own numbers for the product, by a warp: norm and scale, and its operand. A row that cannot be searched by
// products gets a negative norm.
template <typename Config>
__device__ __forceinline__ void prepare_row(SearchShared<Config>& shared, const SearchParameters& p, int64_t stage,
                                            int r) {
  const int lane = threadIdx.x % kWarp;
  const int64_t features = p.rows.features;
  const float* centre = p.ready.centres + stage * features;
  double squares = 0.;
  float most = 0.f;
  for (int64_t j = lane; j < features; j += kWarp) {
    const float value = shared.residual[r][j] - centre[j];
    squares += static_cast<double>(value) * value;
    most = fmaxf(most, fabsf(value));
  }
  const float norm = static_cast<float>(sqrt(warp_sum(squares))) * kRoundUp;
  most = warp_max(most);
  const bool usable = norm < kSearchableNorm;  // not a NaN
  const float scale = power_of_two(usable ? most : 0.f);
  const float inverse = 1.f / scale;
  for (int64_t j = lane; j < p.depth; j += kWarp) {
    const int64_t part = j / features, feature = j % features;
    const bool inside = usable && part < p.parts;
    shared.x[r][j] = operand<false>(inside ? (shared.residual[r][feature] - centre[feature]) * inverse : 0.f, part);
  }
  if (lane == 0) {
    shared.norm[r] = usable ? norm : -1.f;
    shared.scale[r] = scale;
  }
}

// The nearest code of row r by the lanes' bounds and by differences, by a warp.
template <typename Config>
__device__ __forceinline__ Nearest decide(const SearchShared<Config>& shared, const SearchParameters& p, int64_t stage,
                                          int r, int64_t first, int64_t last) {
  const int lane = threadIdx.x % kWarp;
  const int64_t features = p.rows.features;
  const float* codes = p.ready.codes + stage * p.ready.count * features;
  const float* half_norms = p.ready.half_norms + stage * p.padded;
  const float* norms = p.ready.norms + stage * p.padded;
  const float* row = shared.residual[r];
  const float norm = shared.norm[r], best = shared.state.best[r][lane], second = shared.state.second[r][lane];
  const int tile = shared.state.tile[r][lane];

  // What the least half squared distance (less the row's energy) is known not to exceed, with room for the rounding of
  // differences.
  const float least = warp_min(best);
  const int winner = warp_min(best == least ? lane : kWarp - 1);
  const int64_t proposal = static_cast<int64_t>(__shfl_sync(kFullMask, tile, winner)) * kN + winner;
  float ceiling = least;
  if (p.exact > 0.f) {  // the same for all
    float doubt = 0.f;
    for (int g = 0; g < kOfLane; ++g) {
      const float half = half_norms[proposal + g * kLanes];
      const float margin = half < kInfinity ? 2.f * kNormMargin * fabsf(half) : 0.f;
      doubt = fmaxf(doubt, p.unit * norm * norms[proposal + g * kLanes] + margin);
    }
    const float highest = least + 2.f * doubt;
    const float half_distance = fmaxf(.5f * norm * norm + highest, 0.f);
    ceiling = highest + 1.5e-7f * (features + 4.f) * half_distance + kUnderflow * features * (1.f + norm);
  }
  const bool decidable = norm >= 0.f && ceiling < kInfinity && least > -kInfinity;
  const bool unclear = p.exact > 0.f && second <= ceiling;
  bool pending = p.exact > 0.f ? best <= ceiling && !unclear : lane == winner;
  Nearest nearest;
  // Going through many lanes costs more than going through all codes side by side.
  if (!decidable || warp_sum(unclear ? 1 : 0) * 4 > kLanes) {
    nearest.offer_all(row, codes, first, 1, last, features);
  } else {
    while (true) {
      const int next = warp_min(pending ? lane : kWarp);
      if (next == kWarp) break;
      const int64_t k = static_cast<int64_t>(__shfl_sync(kFullMask, tile, next)) * kN + next;
      nearest.offer_all(row, codes, k, kLanes, k + kN < last ? k + kN : last, features);
      pending = pending && lane != next;
    }
    bool left = unclear;
    while (true) {
      const int next = warp_min(left ? lane : kWarp);
      if (next == kWarp) break;
      nearest.offer_all(row, codes, first + next, kLanes, last, features);
      left = left && lane != next;
    }
  }
  nearest.settle(row, codes, features);
  return nearest;
}

// Block (i, s): rows i * kRows .., codes of split s. A warp has kRows / kWarps rows to itself but in the products; in
// the scan of a tile's scores kPerRow threads share a row, and each has kOwn lanes.
template <typename Config>
__global__ void __launch_bounds__(kThreads, Config::kBlocks) search_kernel(const SearchParameters p) {
  using Stage = Staging<Half>;
  constexpr int kRows = Config::kRows, kPerRow = kThreads / kRows, kOwn = kLanes / kPerRow;
  LOSATOK_SHARED(SearchShared<Config>, shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int own_row = threadIdx.x / kPerRow, own_lane = threadIdx.x % kPerRow;
  const int64_t row0 = static_cast<int64_t>(blockIdx.x) * kRows, features = p.rows.features;
  const int64_t count = p.rows.frames.batch * p.rows.frames.time;
  const int64_t first = blockIdx.y * p.per_split;
  const int64_t last = first + p.per_split < p.ready.count ? first + p.per_split : p.ready.count;
  const int64_t steps = p.depth / Stage::kDepth, first_tile = first / kN;
  const int64_t total = (ceil_div<int64_t>(last, kN) - first_tile) * steps;

  for (int r = warp; r < kRows; r += kWarps) {
    const int64_t n = row0 + r;
    const bool valid = n < count && valid_row(p.rows.frames, n);
    for (int64_t j = lane; j < features; j += kWarp) shared.residual[r][j] = valid ? row_value(p.rows, n, j) : 0.f;
  }
  for (int64_t stage = 0; stage < p.ready.stages; ++stage) {
    // A depth is a multiple of 16 bytes, so copies of that size do.
    const Matrix<Half> codes{static_cast<const Half*>(p.ready.rounded) + stage * p.padded * p.depth, p.padded, p.depth,
                             p.depth, true};
    for (int r = warp; r < kRows; r += kWarps) {
      __syncwarp();  // lanes have written the residual that others read
      prepare_row(shared, p, stage, r);
    }
    __syncthreads();
    float best[kOwn], second[kOwn];
    int tiles[kOwn];
#pragma unroll
    for (int l = 0; l < kOwn; ++l) {
      best[l] = second[l] = kInfinity;
      tiles[l] = static_cast<int>(first_tile);
    }
    const float row_slack = p.unit * p.exact * fmaxf(shared.norm[own_row], 0.f), row_scale = shared.scale[own_row];

    const auto copy = [&](int64_t s) {
      if (s < total) {
        stage_tile<kThreads, kN, Stage::kDepth>(shared.codes[s % Stage::kStages], codes, (first_tile + s / steps) * kN,
                                                s % steps * Stage::kDepth);
      }
      async_copy_commit();  // an empty group keeps the count of the wait below right
    };
    TileProduct<Half, kRows, kN, kWarpsM, kWarpsN> product;
    product.clear();
    copy(0);
    copy(1);
#pragma unroll 1
    for (int64_t s = 0; s < total; ++s) {
      async_copy_wait<1>();
      __syncthreads();  // step s is there for all, and all are done with the slot of step s + 2 and the last scores
      copy(s + 2);
      product.template step<false>(&shared.x[0][s % steps * Stage::kDepth], Config::kWidth + Stage::kPad,
                                   &shared.codes[s % Stage::kStages][0][0], Stage::kDepth + Stage::kPad);
      if (s % steps != steps - 1) continue;
      const int64_t tile = first_tile + s / steps;
      product.store(shared.scores);
      product.clear();
      if (threadIdx.x < kN) {
        const int64_t at = stage * p.padded + tile * kN + threadIdx.x;
        shared.half_norms[threadIdx.x] = p.ready.half_norms[at];
        shared.norms[threadIdx.x] = p.ready.norms[at];
        shared.scales[threadIdx.x] = p.ready.scales[at];
      }
      __syncthreads();
#pragma unroll
      for (int l = 0; l < kOwn; ++l) {
        float bound = kInfinity;
#pragma unroll
        for (int g = 0; g < kOfLane; ++g) {
          const int c = own_lane + l * kPerRow + g * kLanes;
          const float lowered = fmaf(-row_slack, shared.norms[c], shared.half_norms[c]);
          bound = fminf(bound, fmaf(shared.scores[own_row][c] * shared.scales[c], -row_scale, lowered));
        }
        if (bound < best[l]) tiles[l] = static_cast<int>(tile);
        second[l] = fminf(second[l], fmaxf(best[l], bound));
        best[l] = fminf(best[l], bound);
      }
    }
    // All are done with the codes since the last barrier, and what is still in flight are empty groups.
#pragma unroll
    for (int l = 0; l < kOwn; ++l) {
      const int c = own_lane + l * kPerRow;
      shared.state.best[own_row][c] = best[l];
      shared.state.second[own_row][c] = second[l];
      shared.state.tile[own_row][c] = tiles[l];
    }
    __syncthreads();
    for (int r = warp; r < kRows; r += kWarps) {
      const int64_t n = row0 + r;
      if (n >= count) break;  // the same for the whole warp, and only warp collectives are passed over
      const int64_t at = blockIdx.y * count + n;
      const bool valid = valid_row(p.rows.frames, n);
      Nearest nearest;
      if (valid) nearest = decide(shared, p, stage, r, first, last);
      if (lane == 0) {
        p.indices[at * p.ready.stages + stage] = nearest.code;
        if (p.distances != nullptr) p.distances[at] = valid ? nearest.distance : 0.f;
      }
      if (!valid) continue;
      const float* code = p.ready.codes + (stage * p.ready.count + nearest.code) * features;
      // Every lane has read the residual: its last distance was summed by all.
      for (int64_t j = lane; j < features; j += kWarp) shared.residual[r][j] -= code[j];
    }
    // A warp goes on to its own rows alone; the state is left for codes at the next stage's first barrier.
  }
}

struct ScanShared {
  float residual[kScanFeatures];
  float distance[kWarps];
  int64_t code[kWarps];
};

// Block (n, s): row n, codes of split s, shared out among the warps; every stage by differences.
__global__ void __launch_bounds__(kThreads) scan_kernel(const Search p) {
  LOSATOK_SHARED(ScanShared, shared);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int64_t n = blockIdx.x, count = p.ready.count, features = p.rows.features, stages = p.ready.stages;
  const int64_t at = blockIdx.y * (p.rows.frames.batch * p.rows.frames.time) + n;
  const int64_t first = blockIdx.y * p.per_split;
  const int64_t last = first + p.per_split < count ? first + p.per_split : count;
  const bool valid = valid_row(p.rows.frames, n);  // the same for the whole block
  for (int64_t j = threadIdx.x; j < features; j += kThreads) {
    shared.residual[j] = valid ? row_value(p.rows, n, j) : 0.f;
  }
  __syncthreads();
  for (int64_t stage = 0; stage < stages; ++stage) {
    const float* codes = p.ready.codes + stage * count * features;
    Nearest nearest;
    if (valid) nearest.offer_all(shared.residual, codes, first + warp, kWarps, last, features);
    if (lane == 0) {
      shared.distance[warp] = nearest.distance;
      shared.code[warp] = nearest.code;
    }
    __syncthreads();
    nearest = Nearest();
    for (int w = 0; w < kWarps; ++w) {
      if (shared.code[w] >= 0) nearest.offer(shared.distance[w], shared.code[w]);
    }
    if (valid) nearest.settle(shared.residual, codes, features);
    __syncthreads();  // a warp that settles reads what comes next overwrites
    if (threadIdx.x == 0) {
      p.indices[at * stages + stage] = nearest.code;
      if (p.distances != nullptr) p.distances[at] = valid ? nearest.distance : 0.f;
    }
    if (valid) {
      const float* code = codes + nearest.code * features;
      for (int64_t j = threadIdx.x; j < features; j += kThreads) shared.residual[j] -= code[j];
    }
    __syncthreads();
  }
}

__global__ void __launch_bounds__(kThreads)
    join_splits_kernel(const int64_t* part_indices, const float* part_distances, int64_t splits, int64_t rows,
                       int64_t* indices, float* distances) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (row >= rows) return;
  float best = part_distances[row];
  int64_t code = part_indices[row];
  for (int64_t s = 1; s < splits; ++s) {
    const float distance = part_distances[s * rows + row];
    const int64_t k = part_indices[s * rows + row];
    // Where a split found nothing finite it names code 0, which may be a NaN away.
    if (distance < best || (distance == best && k < code) || (best != best && distance < kInfinity)) {
      best = distance;
      code = k;
    }
  }
  indices[row] = code;
  distances[row] = best;
}

template <typename Config>
cudaError_t launch_search(const Search& a, cudaStream_t stream) {
  const int64_t rows = a.rows.frames.batch * a.rows.frames.time, features = a.rows.features;
  const int64_t blocks = ceil_div<int64_t>(rows, Config::kRows), parts = parts_of(features);
  if (!fits_grid(blocks) || a.splits > 65535 || features > Config::kWidth) return cudaErrorInvalidValue;
  // Roundings to float16 (of two parts: what is left of them, and the product of their second parts), their underflow,
  // and sums on matrix units, which truncate.
  const float depth = static_cast<float>(parts * features);
  const float rounding = parts == 1 ? 2.01f / 2048.f : 4.f / 4194304.f;
  const float unit = rounding + sqrtf(static_cast<float>(features)) / 8388608.f + (depth + 8.f) / 4194304.f;
  const SearchParameters p{a.rows,
                           a.ready,
                           a.indices,
                           a.distances,
                           a.per_split,
                           padded_codes(a.ready.count),
                           product_depth(features),
                           parts,
                           unit,
                           a.exact ? 1.f : 0.f};
  return launch(search_kernel<Config>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(a.splits)), kThreads,
                sizeof(SearchShared<Config>), stream, p);
}

}  // namespace

int64_t padded_codes(int64_t count) { return ceil_div<int64_t>(count, kN) * kN; }

int64_t product_depth(int64_t features) {
  constexpr int64_t kStep = Staging<Half>::kDepth;
  return ceil_div<int64_t>(parts_of(features) * features, kStep) * kStep;
}

cudaError_t prepare_codes(const PreparedCodes& p, cudaStream_t stream) {
  const int64_t padded = padded_codes(p.count), blocks = ceil_div<int64_t>(padded, kWarps);
  if (!fits_grid(blocks) || p.stages > 65535) return cudaErrorInvalidValue;
  const cudaError_t error =
      launch(centre_kernel, dim3(static_cast<unsigned>(p.stages)), kThreads, sizeof(CentreShared), stream, p);
  if (error != cudaSuccess) return error;
  return launch(prepare_kernel, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.stages)), kThreads, 0,
                stream, p, padded, product_depth(p.features), parts_of(p.features));
}

cudaError_t search_codes(const Search& arguments, cudaStream_t stream) {
  return arguments.rows.features <= Narrow::kWidth ? launch_search<Narrow>(arguments, stream)
                                                   : launch_search<Wide>(arguments, stream);
}

cudaError_t scan_codes(const Search& a, cudaStream_t stream) {
  const int64_t rows = a.rows.frames.batch * a.rows.frames.time;
  if (!fits_grid(rows) || a.splits > 65535 || a.rows.features > kScanFeatures) return cudaErrorInvalidValue;
  return launch(scan_kernel, dim3(static_cast<unsigned>(rows), static_cast<unsigned>(a.splits)), kThreads,
                sizeof(ScanShared), stream, a);
}

cudaError_t join_splits(const int64_t* part_indices, const float* part_distances, int64_t splits, int64_t rows,
                        int64_t* indices, float* distances, cudaStream_t stream) {
  const int64_t blocks = ceil_div<int64_t>(rows, kThreads);
  if (!fits_grid(blocks)) return cudaErrorInvalidValue;
  return launch(join_splits_kernel, dim3(static_cast<unsigned>(blocks)), kThreads, 0, stream, part_indices,
                part_distances, splits, rows, indices, distances);
}

}  // namespace losatok::cuda
