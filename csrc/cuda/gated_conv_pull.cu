#include "gated_conv_pull.cuh"

namespace fastjac {
namespace cuda {

template void gated_conv_pull<float>(const GatedConv<float>&, Stream);
template void gated_conv_pull<double>(const GatedConv<double>&, Stream);

}  // namespace cuda
}  // namespace fastjac
