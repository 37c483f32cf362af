// One DeepFool step on the GPU.
#pragma once

#include "../attack_steps.h"
#include "stream.h"

namespace fastjac {
namespace cuda {

template <typename T>
void deepfool_step(const DeepFoolStep<T>& p, Stream stream);

}  // namespace cuda
}  // namespace fastjac
