"""Recipe ``speed``: the scan, the latent search and an audit against the arithmetic floor."""
