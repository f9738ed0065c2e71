"""What the layers of a network cost on this machine, at every width: measured in small models, read between points."""
