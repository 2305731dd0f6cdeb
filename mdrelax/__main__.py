"""``python -m mdrelax``: the same as the command ``mdrelax``."""

from mdrelax.cli import main

if __name__ == "__main__":
    main()
