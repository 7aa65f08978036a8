"""How well repairs work: on every attack, by share pruned, and by distillation."""
