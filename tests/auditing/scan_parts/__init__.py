"""What workers of a scan import; a folder, as an inspection lies three names deep."""
