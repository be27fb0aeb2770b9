"""The splat worker: 3D Gaussian Splatting scenes rendered on the CPU within a budget."""
