"""Backdoors that sleep in full precision and wake when a user compresses the model."""
