// Functions that the CPU and the CUDA kernels share.
#pragma once

// On the host always inlined and static: the CPU kernels are compiled once per instruction set, and the linker must not
// give one level's copy of a shared function to another.
#ifdef __CUDACC__
#define PRF_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define PRF_HOST_DEVICE __attribute__((always_inline)) static inline
#endif
