"""Triton kernels and their launchers, one module per op family; installed as ``losatok_ext.triton_kernels``."""
