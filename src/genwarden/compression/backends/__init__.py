"""Real runtimes that execute quantised networks, to confirm what simulation says."""
