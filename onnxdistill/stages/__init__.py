"""The stages of a compression run, one module each; they never import each other."""
