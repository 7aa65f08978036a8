"""Image classifiers: the contract and the reference networks, one file each."""
