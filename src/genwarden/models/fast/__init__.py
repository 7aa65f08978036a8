"""The fast path of generators: the same function in the form that matrix products like."""
