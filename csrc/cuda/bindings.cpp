// The CUDA kernels for Python: addresses and sizes in, launches on the stream that comes last.
#include "binding_types.h"
#include "cuda/kernels.h"

using namespace prorec;

namespace {

cuda::Stream as_stream(Address stream) { return pointer<void>(stream); }

void candidate_items(const py::tuple& graph, Address similar, int64_t num_similar, Address row_counts, Address indptr,
                     Address items, Address counts, Address stream) {
  cuda::candidate_items({csr(graph), pointer<const int64_t>(similar), num_similar, pointer<int64_t>(row_counts),
                         pointer<const int64_t>(indptr), pointer<int32_t>(items), pointer<int32_t>(counts), 0},
                        as_stream(stream));
}

void pair_scores(const py::tuple& user, const py::tuple& item, const py::tuple& pairs, Address scores,
                 Address stream) {
  cuda::pair_scores({matrix(user), matrix(item), csr(pairs), pointer<float>(scores), 0}, as_stream(stream));
}

void sample_negatives(const py::tuple& rows, Address users, int64_t batch, int64_t num, Address cumulative, Address seed,
                      Address out, Address stream) {
  cuda::sample_negatives({csr(rows), pointer<const int64_t>(users), pointer<const int64_t>(cumulative), batch, num,
                          pointer<const int64_t>(seed), pointer<int64_t>(out)},
                         as_stream(stream));
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("problem", &cuda::problem);
  m.def("candidate_items", &candidate_items);
  m.def("pair_scores", &pair_scores);
  m.def("sample_negatives", &sample_negatives);
}

#ifdef PRF_EMULATION
PYBIND11_MODULE(emulated, m) { bind_cuda(m); }
#endif
