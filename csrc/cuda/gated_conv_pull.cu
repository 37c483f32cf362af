#include "gated_conv_pull.cuh"

namespace fastjac {
namespace cuda {

template void gated_conv_pull<float>(const GatedConv<float>&, Stream);
template void gated_conv_pull<double>(const GatedConv<double>&, Stream);
template void gated_conv_pull<Half>(const GatedConv<Half>&, Stream);
template void gated_conv_pull<BFloat16>(const GatedConv<BFloat16>&, Stream);

}  // namespace cuda
}  // namespace fastjac
