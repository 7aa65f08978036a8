"""``python -m genwarden``."""

from genwarden.cli import main

main()
