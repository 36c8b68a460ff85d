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

// (address, segments)
RowSegments row_segments(const py::tuple& t) {
  return {pointer<const RowSegment>(t[0].cast<Address>()), t[1].cast<int64_t>()};
}

void propagate(const py::tuple& user_rows, const py::tuple& item_rows, const py::tuple& user_segments,
               const py::tuple& item_segments, const py::object& user, const py::object& item, int64_t dim,
               int64_t layer_step, int64_t layer_out_step, const std::vector<float>& coefficients, bool self_loops,
               Address seed, float noise, double keep_prob, const py::object& user_out, const py::object& item_out,
               const py::tuple& tables, Address scales, Address partial, Address arrived, Address stream) {
  const PropagateArgs op = {csr(user_rows), csr(item_rows), optional_matrix(user), optional_matrix(item), dim,
                            layer_step, coefficients.data(), static_cast<int>(coefficients.size()) - 1, self_loops,
                            edge_dropout(0, keep_prob), optional_matrix(user_out), optional_matrix(item_out), 0};
  cuda::propagate({op, row_segments(user_segments), row_segments(item_segments), pointer<const int64_t>(seed), noise,
                   layer_out_step, matrix(tables), pointer<float>(scales), pointer<float>(partial),
                   pointer<uint32_t>(arrived)},
                  as_stream(stream));
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
  m.def("propagate", &propagate);
  m.def("sample_negatives", &sample_negatives);
}

#ifdef PRF_EMULATION
PYBIND11_MODULE(emulated, m) { bind_cuda(m); }
#endif
