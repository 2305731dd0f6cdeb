"""``python -m mdrelax``: the same door as the command ``mdrelax``."""

from mdrelax.cli import main

if __name__ == "__main__":
    main()
