"""Attackers who know the defences (section 16 of the reference); not in the paper."""
