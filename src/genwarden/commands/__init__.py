"""What the commands do: compositions of the rooms below, without parsing or printing."""
