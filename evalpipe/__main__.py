"""``python -m evalpipe`` is ``evalpipe``."""

from evalpipe.cli import main

main()
