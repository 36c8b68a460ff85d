#include "cuda/launch.h"

namespace prorec {
namespace cuda {
namespace {

__global__ void probe_kernel() {}

}  // namespace

std::string problem(int device) {
#ifdef __CUDACC__
  int driver = 0, before = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "there is no CUDA driver";
  if (driver < CUDART_VERSION / 1000 * 1000)
    return "the driver is for CUDA " + std::to_string(driver / 1000) + ", the kernels were built with CUDA " +
           std::to_string(CUDART_VERSION / 1000);
  cudaFuncAttributes attributes;
  cudaError_t status = cudaGetDevice(&before);
  if (status == cudaSuccess) status = cudaSetDevice(device);
  if (status == cudaSuccess) status = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (status != cudaSuccess) {
    cudaSetDevice(before);
    cudaGetLastError();  // an error that has been reported is not to be found again
    return cudaGetErrorString(status);
  }
  return cudaSetDevice(before) == cudaSuccess ? "" : "the device that was current cannot be set again";
#else
  (void)device;
  return "";
#endif
}

}  // namespace cuda
}  // namespace prorec
