// The CUDA kernels' launchers: asynchronous on the caller's stream, no allocation, no synchronisation.
#pragma once
#include <string>

#include "ops/pair_scores.h"

namespace prorec {
namespace cuda {

using Stream = void*;  // a cudaStream_t, as torch hands it over

// Why the kernels cannot run on `device`; empty when they can.
std::string problem(int device);

void pair_scores(const PairScoresArgs&, Stream);

}  // namespace cuda
}  // namespace prorec
