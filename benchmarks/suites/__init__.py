"""The suites: name -> (module, function). A suite is `f(quick) -> townlet.bench.results.Report`, in this order."""

SUITES: dict[str, tuple[str, str]] = {
    "op": ("suites.op", "grid"),
    "resets": ("suites.op", "resets"),
    "threads": ("suites.op", "threads"),
    "population": ("suites.op", "population"),
    "scaling": ("suites.scaling", "scaling"),
    "simulator": ("suites.training", "simulator"),
    "acting": ("suites.training", "acting"),
    "update": ("suites.training", "update"),
    "training": ("suites.training", "training"),
    "gpu": ("suites.gpu", "op"),
    "gpu-roofline": ("suites.gpu", "roofline"),
    "gpu-update": ("suites.gpu", "update"),
}

NEED_GPU = ("gpu", "gpu-roofline", "gpu-update")
