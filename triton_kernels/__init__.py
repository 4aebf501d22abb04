"""Triton kernels and the functions that launch them; installed as ``losatok_ext.triton_kernels``.

The table of ops (:mod:`losatok_ext.ops.registry`) names the module that has the kernels of an op. That module is
imported when one of the op's ``torch.ops.losatok_triton.*`` first runs: Triton is slow to import. Importing needs
Triton, but no GPU: nothing is compiled or tuned before a first launch. ``launch.py`` is what all launchers share.
"""
