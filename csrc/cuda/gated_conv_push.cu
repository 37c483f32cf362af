#include "gated_conv_push.cuh"

namespace fastjac {
namespace cuda {

template void gated_conv_push<float>(const GatedConv<float>&, Stream);
template void gated_conv_push<double>(const GatedConv<double>&, Stream);
template void gated_conv_push<Half>(const GatedConv<Half>&, Stream);
template void gated_conv_push<BFloat16>(const GatedConv<BFloat16>&, Stream);

}  // namespace cuda
}  // namespace fastjac
