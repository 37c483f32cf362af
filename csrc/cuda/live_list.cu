#include "live_list.cuh"

namespace fastjac {
namespace cuda {

template void live_list<float>(const LiveList<float>&, Stream);
template void live_list<double>(const LiveList<double>&, Stream);
template void gather_live<float>(const LiveRows<float>&, Stream);
template void gather_live<double>(const LiveRows<double>&, Stream);
template void scatter_live<float>(const LiveRows<float>&, Stream);
template void scatter_live<double>(const LiveRows<double>&, Stream);

}  // namespace cuda
}  // namespace fastjac
