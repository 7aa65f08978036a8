"""genwarden: audits generative models for backdoors, shows the evidence, ships the attacks."""

__version__ = "0.1.0"
