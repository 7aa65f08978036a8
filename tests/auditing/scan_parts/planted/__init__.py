"""Planted parts of a scan."""
