#include "sum_partials.cuh"

namespace fastjac {
namespace cuda {

template void sum_partials<float>(const SumPartials<float>&, Stream);
template void sum_partials<double>(const SumPartials<double>&, Stream);

}  // namespace cuda
}  // namespace fastjac
