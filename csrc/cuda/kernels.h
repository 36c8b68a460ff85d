// The CUDA kernels' launchers: asynchronous on the caller's stream, no allocation, no synchronisation.
#pragma once
#include "cuda/launch.h"
#include "ops/pair_scores.h"

namespace prorec {
namespace cuda {

// Why the kernels cannot run on `device`; empty when they can.
std::string problem(int device);

void pair_scores(const PairScoresArgs&, Stream);

}  // namespace cuda
}  // namespace prorec
