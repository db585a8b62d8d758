"""``python -m townlet`` is the ``townlet`` command."""

from townlet.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
