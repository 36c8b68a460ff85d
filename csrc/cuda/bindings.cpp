// The CUDA kernels for Python: addresses and sizes in, launches on the stream that comes last.
#include <algorithm>

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

void environment_bpr(const py::tuple& op, Address parts, int blocks, Address keys, Address stream) {
  cuda::environment_bpr({environment_bpr_args(op, 0), pointer<double>(parts), blocks, pointer<int32_t>(keys)},
                        as_stream(stream));
}

void environment_bpr_bwd(const py::tuple& op, const py::tuple& grads, Address grad_alignment, const py::tuple& tables,
                         Address keys, Address order, Address stream) {
  cuda::environment_bpr_bwd({environment_bpr_bwd_args(environment_bpr_args(op, 0), grads, grad_alignment, tables),
                             pointer<const int32_t>(keys), pointer<const int64_t>(order)},
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

void ranking_metrics(Address items, int64_t rows, int64_t cols, const py::tuple& truth, int64_t num_truth,
                     const std::vector<int>& ks, Address first_rank, Address parts, int blocks, Address table,
                     Address stream) {
  if (ks.size() > kMaxCutOffs) throw std::invalid_argument("ranking_metrics: more cut-offs than a launch takes");
  RankingMetricsCudaArgs args = {pointer<const int64_t>(items), rows, cols, csr(truth), num_truth, {},
                                 static_cast<int>(ks.size()), pointer<int32_t>(first_rank), pointer<double>(parts),
                                 blocks, pointer<double>(table)};
  std::copy(ks.begin(), ks.end(), args.ks);
  cuda::ranking_metrics(args, as_stream(stream));
}

void sample_negatives(const py::tuple& rows, Address users, int64_t batch, int64_t num, Address cumulative,
                      Address place, Address seed, Address out, Address stream) {
  cuda::sample_negatives({csr(rows), pointer<const int64_t>(users), pointer<const int64_t>(cumulative),
                          pointer<const int64_t>(place), batch, num, pointer<const int64_t>(seed),
                          pointer<int64_t>(out)},
                         as_stream(stream));
}

void topk(const py::tuple& scores, int first_item, const py::tuple& exclude, int64_t num_excluded, Address users,
          int64_t first_row, int splits, int kept, int64_t k, Address carried, Address out_scores, Address out_items,
          Address stream) {
  cuda::topk({matrix(scores), first_item, csr(exclude), num_excluded, pointer<const int64_t>(users), first_row, splits,
              kept, k, pointer<uint64_t>(carried), pointer<float>(out_scores), pointer<int64_t>(out_items)},
             as_stream(stream));
}

}  // namespace

void bind_cuda(py::module_& m) {
  m.def("problem", &cuda::problem);
  m.def("candidate_items", &candidate_items);
  m.def("environment_bpr", &environment_bpr);
  m.def("environment_bpr_bwd", &environment_bpr_bwd);
  m.def("pair_scores", &pair_scores);
  m.def("propagate", &propagate);
  m.def("ranking_metrics", &ranking_metrics);
  m.def("sample_negatives", &sample_negatives);
  m.def("topk", &topk);
}

#ifdef PRF_EMULATION
PYBIND11_MODULE(emulated, m) { bind_cuda(m); }
#endif
