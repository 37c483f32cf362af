// One step of the Jacobian saliency map attack: pick one or two features, change them.
#pragma once

#include "../attack_steps.h"
#include "dispatch.h"

namespace fastjac {

FASTJAC_DECLARE_KERNEL(template <typename T> void jsma_step(const JsmaStep<T>& p);)

}  // namespace fastjac
