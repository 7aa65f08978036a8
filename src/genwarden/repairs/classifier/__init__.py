"""Remedies for classifiers, all with a few clean labelled images."""
