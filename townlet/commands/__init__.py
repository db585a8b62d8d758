"""One module per command of ``townlet``: ``add`` declares its arguments, ``run`` carries it out."""
