#include "squared_norms.cuh"

namespace fastjac {
namespace cuda {

template void squared_norms<float>(const SquaredNorms<float>&, Stream);
template void squared_norms<double>(const SquaredNorms<double>&, Stream);

}  // namespace cuda
}  // namespace fastjac
