// The only file that knows Python: addresses and sizes in, plain calls out. The GIL is released in every kernel.
#include "binding_types.h"
#include "common/dispatch.h"
#include "common/parallel.h"

using namespace prorec;

#ifdef PRF_CUDA
void bind_cuda(py::module_& m);
#endif

namespace {

template <class Args>
void run(void (*kernel)(const Args&), const Args& args) {
  py::gil_scoped_release release;
  kernel(args);
}

void bpr(const py::tuple& user, const py::tuple& positive, const py::tuple& negative, Address grad_rows,
         Address loss, Address grad_user, Address grad_positive, Address grad_negative,
         int threads) {
  run(cpu_kernels().bpr,
      BprArgs{matrix(user), matrix(positive), matrix(negative), pointer<const float>(grad_rows),
              pointer<float>(loss), pointer<float>(grad_user), pointer<float>(grad_positive),
              pointer<float>(grad_negative), threads});
}

void distribution_stats(const py::tuple& user, const py::tuple& item, float scale, bool normalize, Address lse,
                        Address entropy, int threads) {
  run(cpu_kernels().distribution_stats, DistributionStatsArgs{matrix(user), matrix(item), scale, normalize,
                                                              pointer<float>(lse), pointer<float>(entropy), threads});
}

void distribution_kl(const py::tuple& user, const py::tuple& item, const py::tuple& teacher_user,
                     const py::tuple& teacher_item, Address users, Address teacher_users, int64_t batch, float scale,
                     float teacher_scale, bool normalize, Address teacher_lse, Address teacher_entropy, int divergence,
                     float eps, Address grad_rows, Address loss, Address grad_user, Address grad_item, int threads) {
  run(cpu_kernels().distribution_kl,
      DistributionKlArgs{matrix(user), matrix(item), matrix(teacher_user), matrix(teacher_item),
                         pointer<const int64_t>(users), pointer<const int64_t>(teacher_users), batch, scale,
                         teacher_scale, normalize, pointer<const float>(teacher_lse),
                         pointer<const float>(teacher_entropy), static_cast<Divergence>(divergence), eps,
                         pointer<const float>(grad_rows), pointer<float>(loss), pointer<float>(grad_user),
                         pointer<float>(grad_item), threads});
}

void environment_bpr(const py::tuple& op, int threads) {
  run(cpu_kernels().environment_bpr, environment_bpr_args(op, threads));
}

void environment_bpr_bwd(const py::tuple& op, const py::tuple& grads, Address grad_alignment, const py::tuple& tables,
                         int threads) {
  run(cpu_kernels().environment_bpr_bwd,
      environment_bpr_bwd_args(environment_bpr_args(op, threads), grads, grad_alignment, tables));
}

void info_nce(const py::tuple& anchor, const py::tuple& positive, Address rows, Address cols, int64_t num_rows,
              int64_t num_cols, Address col_count, Address pair_indptr, Address pair_cols, float scale, bool normalize,
              float eps, Address grad_pairs, Address loss, Address grad_anchor, Address grad_positive, int threads) {
  run(cpu_kernels().info_nce,
      InfoNceArgs{matrix(anchor), matrix(positive), pointer<const int64_t>(rows), pointer<const int64_t>(cols),
                  num_rows, num_cols, pointer<const float>(col_count), pointer<const int64_t>(pair_indptr),
                  pointer<const int64_t>(pair_cols), scale, normalize, eps, pointer<const float>(grad_pairs),
                  pointer<float>(loss), pointer<float>(grad_anchor), pointer<float>(grad_positive), threads});
}

void mix_environments(const py::tuple& profiles, Address weights, int64_t environments, Address out, int threads) {
  run(cpu_kernels().mix_environments, MixEnvironmentsArgs{tables(profiles), pointer<const float>(weights), environments,
                                                          pointer<void>(out), threads});
}

void profile_contrast(const py::tuple& profiles, int64_t batch, float scale, float shift, bool normalize,
                      Address grad_rows, Address loss, Address grad_profiles, int threads) {
  run(cpu_kernels().profile_contrast,
      ProfileContrastArgs{tables(profiles), batch, scale, shift, normalize, pointer<const float>(grad_rows),
                          pointer<float>(loss), pointer<float>(grad_profiles), threads});
}

// inputs: mean and logvar, and the prior's where there is one.
void gaussian_kl(const std::vector<py::tuple>& inputs, float beta, Address grad_rows, Address loss,
                 const std::vector<Address>& grads, int threads) {
  GaussianKlArgs args{{}, inputs.size() > 2, beta, pointer<const float>(grad_rows), pointer<float>(loss), {}, threads};
  for (size_t i = 0; i < inputs.size(); ++i) args.inputs[i] = matrix(inputs[i]);
  for (size_t i = 0; i < grads.size(); ++i) args.grads[i] = pointer<float>(grads[i]);
  run(cpu_kernels().gaussian_kl, args);
}

void multinomial_nll(const py::tuple& logits, Address bias, const py::tuple& targets, Address rows, Address grad_rows,
                     Address loss, Address grad_bias, int threads) {
  run(cpu_kernels().multinomial_nll,
      MultinomialNllArgs{matrix(logits), pointer<const float>(bias), csr(targets), pointer<const int64_t>(rows),
                         pointer<const float>(grad_rows), pointer<float>(loss), pointer<float>(grad_bias), threads});
}

void topk(const py::tuple& user, const py::tuple& item, Address users, int64_t batch, int64_t k, Address exclude_indptr,
          Address exclude_indices, Address scores, Address items, int threads) {
  run(cpu_kernels().topk,
      TopkArgs{matrix(user), matrix(item), pointer<const int64_t>(users), batch, k,
               pointer<const int64_t>(exclude_indptr), pointer<const int32_t>(exclude_indices), pointer<float>(scores),
               pointer<int64_t>(items), threads});
}

void ranking_metrics(Address items, int64_t rows, int64_t cols, const py::tuple& truth, Address ks, int64_t num_ks,
                     Address table, int threads) {
  run(cpu_kernels().ranking_metrics, RankingMetricsArgs{pointer<const int64_t>(items), rows, cols, csr(truth),
                                                        pointer<const int64_t>(ks), num_ks, pointer<double>(table),
                                                        threads});
}

void pair_scores(const py::tuple& user, const py::tuple& item, const py::tuple& pairs, Address scores, int threads) {
  run(cpu_kernels().pair_scores,
      PairScoresArgs{matrix(user), matrix(item), csr(pairs), pointer<float>(scores), threads});
}

void candidate_items(const py::tuple& graph, Address similar, int64_t num_similar, Address row_counts, Address indptr,
                     Address items, Address counts, int threads) {
  run(cpu_kernels().candidate_items,
      CandidateItemsArgs{csr(graph), pointer<const int64_t>(similar), num_similar, pointer<int64_t>(row_counts),
                         pointer<const int64_t>(indptr), pointer<int32_t>(items), pointer<int32_t>(counts), threads});
}

void propagate(const py::tuple& user_rows, const py::tuple& item_rows, const py::object& user, const py::object& item,
               int64_t dim, int64_t layer_step, const std::vector<float>& coefficients, bool self_loops, int64_t seed,
               double keep_prob, const py::object& user_out, const py::object& item_out, int threads) {
  const EdgeDropout dropout = edge_dropout(static_cast<uint64_t>(seed), keep_prob);
  run(cpu_kernels().propagate,
      PropagateArgs{csr(user_rows), csr(item_rows), optional_matrix(user), optional_matrix(item), dim, layer_step,
                    coefficients.data(), static_cast<int>(coefficients.size()) - 1, self_loops, dropout,
                    optional_matrix(user_out), optional_matrix(item_out), threads});
}

void propagate_noise(const py::tuple& x, const py::object& total, float weight, float eps, int64_t seed,
                     uint32_t counter, int threads) {
  run(cpu_kernels().propagate_noise, PropagateNoiseArgs{matrix(x), optional_matrix(total), weight, eps,
                                                        static_cast<uint64_t>(seed), counter, threads});
}

void sample_negatives(const py::tuple& rows, Address users, int64_t batch, int64_t num, Address cumulative,
                      Address place, int64_t seed, Address out, Address failed, int threads) {
  run(cpu_kernels().sample_negatives,
      SampleNegativesArgs{csr(rows), pointer<const int64_t>(users), batch, num, pointer<const int64_t>(cumulative),
                          pointer<const int64_t>(place), static_cast<uint64_t>(seed), pointer<int64_t>(out),
                          pointer<int64_t>(failed), threads});
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of prorec_fast. Private: call prorec_fast's functions instead.";
  m.def("isa", [] { return cpu_kernels().isa; });
  m.def("parallel_backend", &parallel_backend);
  m.def("bpr", &bpr);
  m.def("distribution_stats", &distribution_stats);
  m.def("distribution_kl", &distribution_kl);
  m.def("environment_bpr", &environment_bpr);
  m.def("environment_bpr_bwd", &environment_bpr_bwd);
  m.def("info_nce", &info_nce);
  m.def("gaussian_kl", &gaussian_kl);
  m.def("mix_environments", &mix_environments);
  m.def("multinomial_nll", &multinomial_nll);
  m.def("profile_contrast", &profile_contrast);
  m.def("propagate", &propagate);
  m.def("propagate_noise", &propagate_noise);
  m.def("sample_negatives", &sample_negatives);
  m.def("topk", &topk);
  m.def("ranking_metrics", &ranking_metrics);
  m.def("candidate_items", &candidate_items);
  m.def("pair_scores", &pair_scores);
#ifdef PRF_CUDA
  py::module_ cuda = m.def_submodule("cuda");
  cuda.attr("architectures") = PRF_CUDA_ARCHITECTURES;
  bind_cuda(cuda);
#endif
}
