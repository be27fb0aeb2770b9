"""Model families, their weights and the forward pass over them; README.md says how they fit together."""
