#include "deepfool_step.cuh"

namespace fastjac {
namespace cuda {

template void deepfool_step<float>(const DeepFoolStep<float>&, Stream);
template void deepfool_step<double>(const DeepFoolStep<double>&, Stream);

}  // namespace cuda
}  // namespace fastjac
