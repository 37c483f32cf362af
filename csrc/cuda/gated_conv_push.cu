#include "gated_conv_push.cuh"

namespace fastjac {
namespace cuda {

template void gated_conv_push<float>(const GatedConv<float>&, Stream);
template void gated_conv_push<double>(const GatedConv<double>&, Stream);

}  // namespace cuda
}  // namespace fastjac
