"""Compression: the operations with which a user makes a model small enough for a device."""
