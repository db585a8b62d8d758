"""``townlet serve``: a local web page that shows runs while they train.

`runs` finds the run folders and reads what each tells of its run. `play` lets a run's agent play one episode. `server`
answers requests with what those two know. The page itself is in ``static/``.
"""
