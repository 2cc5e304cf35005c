// The activations of a product's epilogue, for the emulated device's own products.
#include "emulated.h"

#include "../activation.cuh"

extern "C" float emulated_activate(unsigned activation, float x, bool as_on_cpu) {
    return as_on_cpu ? activate_as_on_cpu(activation, x) : activate(activation, x);
}
