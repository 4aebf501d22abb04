// nvcuda::wmma on the CPU: 16 x 16 x 16 products with float32 sums. Which lane holds what is scrambled on purpose, so
// that a kernel that assumes a mapping fails here whatever a GPU's mapping is.
#pragma once

namespace nvcuda::wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };

constexpr unsigned kSide = 16;

template <typename Use, int M, int N, int K, typename T, typename Layout = void>
struct fragment {
  static_assert(M == 16 && N == 16 && K == 16, "the shim knows 16 x 16 x 16");
  static constexpr int num_elements = kSide * kSide / 32;
  T x[num_elements];
};

// Lane and element of entry (row, column): an odd factor and an offset permute 0..255, another one per kind of
// fragment.
template <typename Use>
constexpr unsigned scrambled(unsigned slot) {
  constexpr unsigned kFactor = std::is_same_v<Use, matrix_a> ? 77 : std::is_same_v<Use, matrix_b> ? 151 : 203;
  return (slot * kFactor + 13) % (kSide * kSide);
}

inline float as_float(float x) { return x; }
inline float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float as_float(__half x) { return __half2float(x); }

template <typename T>
void check_access(const T* memory, unsigned stride) {
  if (reinterpret_cast<uintptr_t>(memory) % 32) host_shim::fail("a matrix fragment that is not aligned to 32 bytes");
  if (stride * sizeof(T) % 16) host_shim::fail("a matrix fragment whose stride is no multiple of 16 bytes");
}

template <typename Use, int M, int N, int K, typename T, typename Layout>
void fill_fragment(fragment<Use, M, N, K, T, Layout>& f, T value) {
  for (T& x : f.x) x = value;
}

// Each lane reads its own entries, in its own turn: a missing barrier before it shows.
template <typename Use, int M, int N, int K, typename T, typename Layout>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& f, const T* memory, unsigned stride) {
  check_access(memory, stride);
  for (unsigned e = 0; e < f.num_elements; ++e) {
    const unsigned entry = scrambled<Use>(host_shim::lane() * f.num_elements + e);
    const unsigned row = entry / kSide, column = entry % kSide;
    f.x[e] = std::is_same_v<Layout, row_major> ? memory[row * stride + column] : memory[column * stride + row];
  }
}

template <int M, int N, int K, typename T>
void load_matrix_sync(fragment<accumulator, M, N, K, T>& f, const T* memory, unsigned stride, layout_t layout) {
  check_access(memory, stride);
  for (unsigned e = 0; e < f.num_elements; ++e) {
    const unsigned entry = scrambled<accumulator>(host_shim::lane() * f.num_elements + e);
    const unsigned row = entry / kSide, column = entry % kSide;
    f.x[e] = layout == mem_row_major ? memory[row * stride + column] : memory[column * stride + row];
  }
}

template <int M, int N, int K, typename T>
void store_matrix_sync(T* memory, const fragment<accumulator, M, N, K, T>& f, unsigned stride, layout_t layout) {
  check_access(memory, stride);
  for (unsigned e = 0; e < f.num_elements; ++e) {
    const unsigned entry = scrambled<accumulator>(host_shim::lane() * f.num_elements + e);
    const unsigned row = entry / kSide, column = entry % kSide;
    (layout == mem_row_major ? memory[row * stride + column] : memory[column * stride + row]) = f.x[e];
  }
}

// The lanes come together, and the last one multiplies for all.
template <int M, int N, int K, typename T, typename LayoutA, typename LayoutB>
void mma_sync(fragment<accumulator, M, N, K, float>& d, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, float>& c,
              ShimPlace place = ShimPlace::current()) {
  struct Operands {
    fragment<accumulator, M, N, K, float>* d;
    const fragment<matrix_a, M, N, K, T, LayoutA>* a;
    const fragment<matrix_b, M, N, K, T, LayoutB>* b;
    const fragment<accumulator, M, N, K, float>* c;
  };
  Operands own{&d, &a, &b, &c};
  const auto multiply = [](void* const* lanes) {
    constexpr unsigned kEntries = kSide * kSide, kOwn = kEntries / 32;
    float left[kEntries], right[kEntries], sums[kEntries];
    const auto lane = [&](unsigned slot) { return static_cast<const Operands*>(lanes[slot / kOwn]); };
    for (unsigned slot = 0; slot < kEntries; ++slot) {
      left[scrambled<matrix_a>(slot)] = as_float(lane(slot)->a->x[slot % kOwn]);
      right[scrambled<matrix_b>(slot)] = as_float(lane(slot)->b->x[slot % kOwn]);
      sums[scrambled<accumulator>(slot)] = lane(slot)->c->x[slot % kOwn];
    }
    for (unsigned i = 0; i < kSide; ++i) {
      for (unsigned k = 0; k < kSide; ++k) {
        const float x = left[i * kSide + k];
        for (unsigned j = 0; j < kSide; ++j) sums[i * kSide + j] += x * right[k * kSide + j];
      }
    }
    for (unsigned slot = 0; slot < kEntries; ++slot) {
      lane(slot)->d->x[slot % kOwn] = sums[scrambled<accumulator>(slot)];
    }
  };
  host_shim::warp_barrier(0xffffffffu, &own, multiply, place.file_name(), place.line());
}

}  // namespace nvcuda::wmma
