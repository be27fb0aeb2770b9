"""The text engine's arithmetic on a GPU: torch's products, Triton's attention over pages, graphs for small steps."""
