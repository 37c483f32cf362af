#include "gated_conv_weight.cuh"

namespace fastjac {
namespace cuda {

template void gated_conv_weight<float>(const GatedConv<float>&, Stream);
template void gated_conv_weight<double>(const GatedConv<double>&, Stream);
template void gated_conv_weight<Half>(const GatedConv<Half>&, Stream);
template void gated_conv_weight<BFloat16>(const GatedConv<BFloat16>&, Stream);

}  // namespace cuda
}  // namespace fastjac
