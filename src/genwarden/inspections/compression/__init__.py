"""Inspections of what a model becomes when it is compressed, one file each."""
