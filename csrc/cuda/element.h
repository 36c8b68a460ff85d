// Stored elements as floats, and in 16-byte groups.
#pragma once
#include "common/views.h"
#include "cuda/launch.h"

#ifdef __CUDACC__
#include <cuda_fp16.h>
#endif

namespace prorec {
namespace cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(BFloat16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float to_float(Float16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};  // to the nearest, ties to even
}
template <>
__device__ __forceinline__ Float16 from_float<Float16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// kCount elements that are loaded and stored together; 16-byte accesses where kCount * sizeof(T) is 16.
template <class T, int kCount>
struct alignas(sizeof(T) * kCount) Group {
  T value[kCount];
};

// Calls body with a null pointer of the element type that `dtype` names.
template <class Body>
void with_element_type(DType dtype, const Body& body) {
  if (dtype == DType::kFloat32)
    body(static_cast<float*>(nullptr));
  else if (dtype == DType::kBFloat16)
    body(static_cast<BFloat16*>(nullptr));
  else
    body(static_cast<Float16*>(nullptr));
}

}  // namespace cuda
}  // namespace prorec
