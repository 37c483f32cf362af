#include "live_list.cuh"

namespace fastjac {
namespace cuda {

template void live_list<float>(const LiveList<float>&, Stream);
template void live_list<double>(const LiveList<double>&, Stream);

}  // namespace cuda
}  // namespace fastjac
