"""``python -m genwarden``."""

from genwarden.start import main

main()
