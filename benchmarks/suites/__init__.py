"""The suites in the order in which they run: name -> (module, function).

The function takes ``quick`` and returns `townlet.bench.results.Measurements`.
"""

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
