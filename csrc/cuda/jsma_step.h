// One step of the Jacobian saliency map attack on the GPU.
#pragma once

#include "../attack_steps.h"
#include "stream.h"

namespace fastjac {
namespace cuda {

template <typename T>
void jsma_step(const JsmaStep<T>& p, Stream stream);

}  // namespace cuda
}  // namespace fastjac
