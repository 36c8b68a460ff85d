"""Kernels for CUDA devices in Triton; imported by the operations when first used, never by the package."""
