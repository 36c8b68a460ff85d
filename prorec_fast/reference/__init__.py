"""The definition of every operation in plain PyTorch: any device, any floating dtype, differentiable by autograd.

The compiled kernels are tested against these functions in float64, and benchmarked against them in float32. They
also serve the devices and dtypes for which no kernel is built.
"""
