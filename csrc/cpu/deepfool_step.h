// One DeepFool step: to the nearest boundary of the linearised model and beyond.
#pragma once

#include "../attack_steps.h"
#include "dispatch.h"

namespace fastjac {

FASTJAC_DECLARE_KERNEL(template <typename T>
                       void deepfool_step(const DeepFoolStep<T>& p);)

}  // namespace fastjac
