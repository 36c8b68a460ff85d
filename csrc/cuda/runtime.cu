#include "cuda/launch.h"

namespace prorec {
namespace cuda {
namespace {

__global__ void probe_kernel() {}

}  // namespace

std::string problem() {
#ifdef __CUDACC__
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) return "there is no CUDA driver";
  if (driver < CUDART_VERSION / 1000 * 1000)
    return "the driver is for CUDA " + std::to_string(driver / 1000) + ", the kernels were built with CUDA " +
           std::to_string(CUDART_VERSION / 1000);
  cudaFuncAttributes attributes;
  const cudaError_t status = cudaFuncGetAttributes(&attributes, probe_kernel);
  if (status != cudaSuccess) {
    cudaGetLastError();  // an error that has been reported is not to be found again
    return cudaGetErrorString(status);
  }
#endif
  return "";
}

}  // namespace cuda
}  // namespace prorec
