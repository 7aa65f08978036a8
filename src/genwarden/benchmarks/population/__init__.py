"""The population study: clean and compromised generators, audited with one set of rules."""
