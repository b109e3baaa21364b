"""What a dry run is made of: models without weights, and stand-ins for what is not on this machine."""
