// Launchers of the codebook ops. Pointers are to device memory; rows are [B, T, d] with the given strides in elements
// and contiguous features, codebooks dense. Every launcher returns the launch's error and waits for nothing.
#pragma once

#include "cuda/launch_types.h"

namespace losatok::cuda {

struct CodedRows {
  DType dtype;
  const void* data;  // [B, T, features]
  int64_t features;
  int64_t batch_stride, row_stride;
  Frames frames;
};

// Codebooks made ready for a search by products: codes less their stage's centre and over a power of two of their own,
// in float16 of one part or two, [stages, padded, depth]: the operand of tile products.
struct PreparedCodes {
  const float* codes;  // [stages, count, features]
  float* centres;      // [stages, features]
  void* rounded;       // float16
  float* half_norms;   // [stages, padded], rounded down; infinity where no code is, or one that is not finite
  float* norms;        // [stages, padded], rounded up
  float* scales;       // [stages, padded]
  int64_t stages, count, features;
};

constexpr int64_t kSearchFeatures = 512;  // rows of more go by differences alone
constexpr int64_t kScanFeatures = 8192;   // and there are no kernels for more than these
constexpr int64_t kCodeTile = 64;

// The codes of a codebook as products see them: count and features, with what pads them.
int64_t padded_codes(int64_t count);
int64_t product_depth(int64_t features);

cudaError_t prepare_codes(const PreparedCodes& arguments, cudaStream_t stream);

// For each row and stage the nearest code to what the stages before left over: indices [splits, B T, stages], -1 past a
// length. Of a single stage also the squared distance [splits, B T], 0 there; it may be split over the codes, each
// split with `per_split` of them (a multiple of kCodeTile) to itself. scan_codes decides all by differences.
struct Search {
  CodedRows rows;
  PreparedCodes ready;  // of which scan_codes uses codes and sizes alone
  int64_t* indices;
  float* distances;  // or null
  int64_t splits, per_split;
  bool exact;
};

cudaError_t search_codes(const Search& arguments, cudaStream_t stream);
cudaError_t scan_codes(const Search& arguments, cudaStream_t stream);

// The nearest of what the splits found, [splits, rows].
cudaError_t join_splits(const int64_t* part_indices, const float* part_distances, int64_t splits, int64_t rows,
                        int64_t* indices, float* distances, cudaStream_t stream);

// out [rows, features] = the sum over q of books[q, codes[row, q]], in the order of q; a code outside 0..count-1 adds
// nothing. codes [rows, used], books [*, count, features].
struct SumOfCodes {
  const int64_t* codes;
  const void* books;
  void* out;
  int64_t rows, used, count, features;
};

cudaError_t sum_of_codes(DType books_dtype, DType out_dtype, const SumOfCodes& arguments, cudaStream_t stream);

// out [B T, features], of the rows' type, = 2 weights (row - codes[index]), codes [count, features]; zeros where the
// index lies outside 0..count-1, where the row is not read.
cudaError_t distance_gradient(const CodedRows& rows, const float* weights, const float* codes, int64_t count,
                              const int64_t* indices, void* out, cudaStream_t stream);

// out[k] = the sum over the rows of code k, in their order, of the row; with weights [B T], of
// 2 weights[row] (codes[k] - row). The rows of code k are order[starts[k] .. starts[k + 1]] modulo B T.
struct CodeGradient {
  CodedRows rows;
  const float* weights;  // or null
  const float* codes;    // [total, features]; null without weights
  const int64_t* order;
  const int64_t* starts;  // [total + 1]
  void* out;              // [total, features]
  int64_t total;
};

cudaError_t code_gradient(DType out_dtype, const CodeGradient& arguments, cudaStream_t stream);

}  // namespace losatok::cuda
