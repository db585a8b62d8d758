// Adds the class Town to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace townlet {

void bind_town(pybind11::module_& m);

}  // namespace townlet
