// Adds the class Town and the tables of its rules to the module.
#pragma once

#include <pybind11/pybind11.h>

namespace townlet {

void bind_town(pybind11::module_& m);

}  // namespace townlet
