// The op schemas and the Python module `_C`. A new op adds its lines to the schema list and nothing else here:
// implementations register themselves where they are written (csrc/cpu/<op>.cpp, csrc/cuda/bindings_<op>.cpp).
#include <pybind11/pybind11.h>
#include <torch/library.h>

#include "cpu/isa.h"

TORCH_LIBRARY(losatok, m) {
  // bottleneck: x [N, D] -> z [N, d]; hidden is the pre-activation [N, H] when kept, else [0, H]
  m.def(
      "bottleneck_project_forward(Tensor x, Tensor weight_in, Tensor? bias_in, Tensor weight_out, Tensor? bias_out, "
      "str activation, bool keep_hidden) -> (Tensor z, Tensor hidden)");
  m.def(
      "bottleneck_project_backward(Tensor grad, Tensor x, Tensor hidden, Tensor weight_in, Tensor weight_out, "
      "str activation, bool need_x, bool need_parameters) -> "
      "(Tensor grad_x, Tensor grad_weight_in, Tensor grad_bias_in, Tensor grad_weight_out, Tensor grad_bias_out)");
  // z [B, T, d], target [B, T, D] of any floating dtype -> loss [] and its gradients for a unit output gradient ([0]
  // where not asked for)
  m.def(
      "normalized_reconstruction_loss_forward(Tensor z, Tensor target, Tensor weight_in, Tensor? bias_in, "
      "Tensor weight_out, Tensor? bias_out, Tensor? lengths, str activation, bool need_grad) -> "
      "(Tensor loss, Tensor grad_z, Tensor grad_weight_in, Tensor grad_bias_in, Tensor grad_weight_out, "
      "Tensor grad_bias_out)");
  // int8_linear: x [N, D] of any floating dtype, weight [M, D] int8, scale and bias [M] -> y [N, M] in x's dtype
  m.def("int8_linear_forward(Tensor x, Tensor weight, Tensor scale, Tensor? bias, str activation) -> Tensor y");
  // time_relation: low [B, T, d], high [B, T, D] -> loss [] and d loss / d low; window -1 means none
  m.def(
      "time_relation_forward(Tensor low, Tensor high, Tensor? lengths, int window, str algorithm, "
      "Tensor? high_energy, bool need_grad) -> (Tensor loss, Tensor grad_low)");
  m.def("gram_energy_forward(Tensor high, Tensor? lengths, int window) -> Tensor");
  // quantize: x [B, T, d], codebook [K, d] of any floating dtypes -> indices [B, T] (int64, -1 past a length) and the
  // squared distance [B, T] in float32 (float64)
  m.def(
      "vq_nearest_forward(Tensor x, Tensor codebook, Tensor? lengths, str precision) -> "
      "(Tensor indices, Tensor squared_distance)");
  // grad [B, T] of squared_distance; grad_x, grad_codebook in the dtypes of x and codebook, [0] where not asked for
  m.def(
      "vq_nearest_backward(Tensor grad, Tensor x, Tensor codebook, Tensor indices, bool need_x, bool need_codebook) -> "
      "(Tensor grad_x, Tensor grad_codebook)");
  // x [B, T, d], codebooks [Q, K, d] -> codes [B, T, Q] (int64, -1 past a length), quantized [B, T, d] in x's dtype
  m.def(
      "rvq_encode_forward(Tensor x, Tensor codebooks, Tensor? lengths, str precision) -> "
      "(Tensor codes, Tensor quantized)");
  // codes [N, q], q <= Q, -1 adds nothing -> quantized [N, d] in the codebooks' dtype; the backward is rvq_encode's too
  m.def("rvq_decode_forward(Tensor codes, Tensor codebooks) -> Tensor quantized");
  m.def("rvq_decode_backward(Tensor grad, Tensor codes, Tensor codebooks) -> Tensor grad_codebooks");
  // x [B, T, D], D levels -> quantized [B, T, D] in x's dtype, indices [B, T] (int64, -1 past a length)
  m.def("fsq_quantize_forward(Tensor x, int[] levels, Tensor? lengths) -> (Tensor quantized, Tensor indices)");
  m.def("fsq_quantize_backward(Tensor grad, Tensor x, int[] levels, Tensor? lengths) -> Tensor grad_x");
  // indices [N] -> [N, D]; -1 gives zeros
  m.def("fsq_dequantize_forward(Tensor indices, int[] levels, ScalarType dtype) -> Tensor");
  // x [N, n] -> packed [N, n or ceil(n / 2)] uint8 (4 bits: the even element in the low half), scale and offset [N] in
  // float32 (float64)
  m.def("affine_quantize_forward(Tensor x, int bits) -> (Tensor packed, Tensor scale, Tensor offset)");
  m.def(
      "affine_dequantize_forward(Tensor packed, Tensor scale, Tensor offset, int bits, SymInt size, ScalarType dtype) "
      "-> Tensor");
  // x [B, T, C]; shift, scale each [B, C] or [B, T, C], in x's dtype; mean, rstd [B, T] in float32 (float64)
  m.def(
      "layer_norm_modulate_forward(Tensor x, Tensor shift, Tensor scale, float eps) -> "
      "(Tensor y, Tensor mean, Tensor rstd)");
  // grad_shift [B, T, C] with per_frame_shift, else [B, C]; grad_scale in the shape of scale; all in x's dtype
  m.def(
      "layer_norm_modulate_backward(Tensor grad, Tensor x, Tensor scale, Tensor mean, Tensor rstd, "
      "bool per_frame_shift) -> (Tensor grad_x, Tensor grad_shift, Tensor grad_scale)");
  // x, branch [B, T, C]; gate [B, C] or [B, T, C], all of one dtype; the gradient of x is grad itself
  m.def("gated_residual_forward(Tensor x, Tensor branch, Tensor gate) -> Tensor");
  m.def("gated_residual_backward(Tensor grad, Tensor branch, Tensor gate) -> (Tensor grad_branch, Tensor grad_gate)");
  // dit_attention: q [B, T, H, h], k and v [B, S, H, h], of one dtype and any strides; q_weight, k_weight [h] and cos,
  // sin [T, h_rope / 2] in float32 (float64); norm "none", "rms" or "layer"; key_lengths counts keys, None means all S.
  // out [B, T, H, h]; lse [B, H, T] in float32 (float64), -infinity for rows past a length or without a key
  m.def(
      "dit_attention_forward(Tensor q, Tensor k, Tensor v, Tensor? q_weight, Tensor? k_weight, Tensor? cos, "
      "Tensor? sin, Tensor? lengths, Tensor? key_lengths, str norm, float eps, bool interleaved) -> "
      "(Tensor out, Tensor lse)");
  // the gradients of the weights in float32 (float64), [0] where there is no weight
  m.def(
      "dit_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor? q_weight, Tensor? k_weight, "
      "Tensor? cos, Tensor? sin, Tensor? lengths, Tensor? key_lengths, Tensor out, Tensor lse, str norm, float eps, "
      "bool interleaved) -> "
      "(Tensor grad_q, Tensor grad_k, Tensor grad_v, Tensor grad_q_weight, Tensor grad_k_weight)");
  // vocoder: head [B, T, n + 2], window [n] -> waveform [B, hop T] in what their dtypes promote to; its gradient is
  // head's, zero past a length
  m.def("polar_istft_forward(Tensor head, Tensor window, int hop, Tensor? lengths) -> Tensor waveform");
  m.def("polar_istft_backward(Tensor grad, Tensor head, Tensor window, int hop, Tensor? lengths) -> Tensor grad_head");
  // x [B, T, C], conv_weight [C, 1, k], all others [C] -> y [B, T, C]; gradients in the shapes of what they are of,
  // [0] where not asked for
  m.def(
      "depthwise_conv_norm_forward(Tensor x, Tensor conv_weight, Tensor? conv_bias, Tensor? norm_weight, "
      "Tensor? norm_bias, float eps, Tensor? lengths) -> Tensor y");
  m.def(
      "depthwise_conv_norm_backward(Tensor grad, Tensor x, Tensor conv_weight, Tensor? conv_bias, Tensor? norm_weight, "
      "float eps, Tensor? lengths, bool need_x, bool need_parameters) -> "
      "(Tensor grad_x, Tensor grad_conv_weight, Tensor grad_conv_bias, Tensor grad_norm_weight, "
      "Tensor grad_norm_bias)");
}

PYBIND11_MODULE(_C, m) {
  m.doc() = "The native ops of losatok_ext; importing it registers them as torch.ops.losatok.*";
  m.def(
      "build_info",
      [] {
        pybind11::dict facts;
        facts["version"] = LOSATOK_VERSION;
        facts["torch"] = LOSATOK_BUILD_TORCH;
        facts["python"] = LOSATOK_BUILD_PYTHON;
        facts["compiler"] = LOSATOK_BUILD_COMPILER;
        facts["cuda"] = LOSATOK_BUILD_CUDA;
        facts["cuda_archs"] = LOSATOK_BUILD_CUDA_ARCHS;
        facts["instruction_sets"] = LOSATOK_BUILD_ISAS;
#ifdef LOSATOK_WITH_CUDA
        facts["with_cuda"] = true;
#else
        facts["with_cuda"] = false;
#endif
        return facts;
      },
      "What this build was made with: versions, compiler, CUDA toolkit and architectures, CPU instruction sets.");
  m.def(
      "instruction_set", [] { return losatok::isa_name(losatok::isa()); },
      "The CPU instruction set in use: default, avx2 or avx512 (LOSATOK_ISA caps it).");
}
