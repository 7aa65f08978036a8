"""Ways to compress a model in which a backdoor that compression wakes stays asleep."""
