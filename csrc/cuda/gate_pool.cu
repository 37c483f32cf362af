#include "gate_pool.cuh"

namespace fastjac {
namespace cuda {

template void gate_rows<float>(const GateRows<float>&, Stream);
template void gate_rows<double>(const GateRows<double>&, Stream);
template void gated_sum<float>(const GatedSum<float>&, Stream);
template void gated_sum<double>(const GatedSum<double>&, Stream);
template void unpool_rows<float>(const UnpoolRows<float>&, Stream);
template void unpool_rows<double>(const UnpoolRows<double>&, Stream);
template void pool_tangents<float>(const PoolTangents<float>&, Stream);
template void pool_tangents<double>(const PoolTangents<double>&, Stream);

}  // namespace cuda
}  // namespace fastjac
