#include "live_rows.cuh"

namespace fastjac {
namespace cuda {

template void gather_live<float>(const LiveRows<float>&, Stream);
template void gather_live<double>(const LiveRows<double>&, Stream);
template void gather_live<Half>(const LiveRows<Half>&, Stream);
template void gather_live<BFloat16>(const LiveRows<BFloat16>&, Stream);
template void scatter_live<float>(const LiveRows<float>&, Stream);
template void scatter_live<double>(const LiveRows<double>&, Stream);
template void scatter_live<Half>(const LiveRows<Half>&, Stream);
template void scatter_live<BFloat16>(const LiveRows<BFloat16>&, Stream);

}  // namespace cuda
}  // namespace fastjac
