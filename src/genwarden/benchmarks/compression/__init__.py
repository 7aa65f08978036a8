"""Recipes for backdoors that wake up under compression, in generators and classifiers."""
