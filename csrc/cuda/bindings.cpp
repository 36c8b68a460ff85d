// The CUDA kernels for Python: addresses and sizes in, launches on the stream that comes last.
#include "binding_types.h"
#include "cuda/kernels.h"

using namespace prorec;

namespace {

cuda::Stream as_stream(Address stream) { return pointer<void>(stream); }

void pair_scores(const py::tuple& user, const py::tuple& item, const py::tuple& pairs, Address scores,
                 Address stream) {
  cuda::pair_scores({matrix(user), matrix(item), csr(pairs), pointer<float>(scores), 0}, as_stream(stream));
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("problem", &cuda::problem);
  m.def("pair_scores", &pair_scores);
}

#ifdef PRF_EMULATION
PYBIND11_MODULE(emulated, m) { bind_cuda(m); }
#endif
