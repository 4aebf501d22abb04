"""Triton kernels and their launchers, one module per op; installed as ``losatok_ext.triton_kernels``.

Importing this package registers ``torch.ops.losatok_triton.*``. It needs Triton, but no GPU: nothing is compiled or
tuned before a first launch. ``launch.py`` is what all launchers share.
"""

from losatok_ext.triton_kernels import registration as registration
