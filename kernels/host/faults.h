// What ends a kernel that touches memory that is not there.
#pragma once

namespace emulated {

// Makes such an access (and a division by zero) an error of the launch, with block and thread, instead of the end of the process:
// in the whole process, once. Outside kernels whoever handled it before still does. AddressSanitizer tells more, and is left alone.
void catch_faults();

}  // namespace emulated
