"""``townlet serve``: a local web page that shows runs while they train.

``curves`` reads metrics.csv as it grows, ``runs`` finds run folders and says how they are, ``play`` lets a run's agent
play one episode, ``server`` answers requests with what those three know; ``static/`` is the page.
"""
