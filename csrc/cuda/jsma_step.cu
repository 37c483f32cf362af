#include "jsma_step.cuh"

namespace fastjac {
namespace cuda {

template void jsma_step<float>(const JsmaStep<float>&, Stream);
template void jsma_step<double>(const JsmaStep<double>&, Stream);

}  // namespace cuda
}  // namespace fastjac
