"""The diffusion transformer, the flow-map contract it satisfies and the files it is kept in."""
