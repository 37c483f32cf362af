#include "squared_norms.cuh"

namespace fastjac {
namespace cuda {

template void squared_norms<float>(const SquaredNorms<float>&, Stream);
template void squared_norms<double>(const SquaredNorms<double>&, Stream);
template void squared_norms<Half>(const SquaredNorms<Half>&, Stream);
template void squared_norms<BFloat16>(const SquaredNorms<BFloat16>&, Stream);
template void squared_norms_and_totals<float>(const SquaredNorms<float>&,
                                              const NormTotals<float>&, Stream);
template void squared_norms_and_totals<double>(const SquaredNorms<double>&,
                                               const NormTotals<double>&, Stream);
template void squared_norms_and_totals<Half>(const SquaredNorms<Half>&,
                                             const NormTotals<float>&, Stream);
template void squared_norms_and_totals<BFloat16>(const SquaredNorms<BFloat16>&,
                                                 const NormTotals<float>&, Stream);

}  // namespace cuda
}  // namespace fastjac
