"""One module per command of ``townlet``: ``add`` declares the command's arguments, ``run`` carries it out."""
