#include "common/dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace prorec {

#define PRF_DECLARE(name, Args) void name(const Args&);
#define PRF_ENTRY(name, Args) name,
#define PRF_LEVEL(isa_name)                                                               \
  namespace isa_name {                                                                    \
  PRF_CPU_KERNELS(PRF_DECLARE)                                                            \
  static const CpuKernels kernels = {#isa_name, PRF_CPU_KERNELS(PRF_ENTRY)};              \
  }

PRF_LEVEL(baseline)
#ifdef PRF_X86
PRF_LEVEL(avx2)
PRF_LEVEL(avx512)
#endif

namespace {

const CpuKernels& best() {
#ifdef PRF_X86
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (const char* wanted = std::getenv("PROREC_FAST_ISA")) {
    const std::string isa = wanted;
    if (isa == "baseline") return baseline::kernels;
    if (isa == "avx2" && has_avx2) return avx2::kernels;
    if (isa == "avx512" && has_avx512) return avx512::kernels;
    throw std::invalid_argument("PROREC_FAST_ISA=" + isa + ": want baseline, avx2 or avx512, and a processor with it");
  }
  if (has_avx512) return avx512::kernels;
  if (has_avx2) return avx2::kernels;
#endif
  return baseline::kernels;
}

}  // namespace

const CpuKernels& cpu_kernels() {
  static const CpuKernels& chosen = best();
  return chosen;
}

}  // namespace prorec
